import { contrastive, decoder } from "../programs/subjects.ts"
import { everyStrategyOnRanks } from "./strategyOnRanks.ts"

for (const subject of [contrastive, decoder(false), decoder(true)]) everyStrategyOnRanks(subject)
