import { contrastive } from "../programs/subjects.ts"
import { everyStrategy } from "./everyStrategy.ts"

everyStrategy(contrastive)
