import { contrastive, decoder, vit } from "../programs/subjects.ts"
import { combinationsOnRanks } from "./strategyOnRanks.ts"

for (const subject of [vit(0), vit(1), vit(8), contrastive, decoder(false), decoder(true)])
  combinationsOnRanks(subject, 30)
