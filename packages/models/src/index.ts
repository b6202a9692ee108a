/** Vision transformers on @tessera/core: models, presets, layers, and the tables that read published weights. */
export * as Finetune from "./import/finetune.ts"
export * as NameTable from "./import/NameTable.ts"
export * as PositionInterpolation from "./import/positionInterpolation.ts"
export * as VitMnist from "./import/vitMnist.ts"
export * as VitNames from "./import/vitNames.ts"
export * as Presets from "./presets.ts"
export * as Vit from "./Vit.ts"
export * as VitConfig from "./VitConfig.ts"
