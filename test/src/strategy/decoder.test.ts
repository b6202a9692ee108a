import { decoder } from "../programs/subjects.ts"
import { everyStrategy } from "./everyStrategy.ts"

everyStrategy(decoder(false))
