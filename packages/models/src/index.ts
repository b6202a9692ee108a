/** Vision transformers on @tessera/core: models, layers, presets and the tables that read published weights. */
export * as Presets from "./presets.ts"
export * as Vit from "./Vit.ts"
export * as VitConfig from "./VitConfig.ts"
