import { vit } from "../programs/subjects.ts"
import { everyStrategy } from "./everyStrategy.ts"

everyStrategy(vit(0))
