import { contrastive, decoder, vit } from "../programs/subjects.ts"
import { combinations } from "./everyStrategy.ts"

for (const subject of [vit(0), vit(1), vit(8), contrastive, decoder(false), decoder(true)]) combinations(subject, 30)
