import { vit } from "../programs/subjects.ts"
import { everyStrategyOnRanks } from "./strategyOnRanks.ts"

for (const subject of [vit(0), vit(1), vit(8)]) everyStrategyOnRanks(subject)
