import { contrastive, vit } from "../programs/subjects.ts"
import { everyStrategyOnRanks } from "./strategyOnRanks.ts"

for (const subject of [vit(1), contrastive]) everyStrategyOnRanks(subject, "local")
