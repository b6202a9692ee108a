/** The parts of the `tessera` command, for programs that want its recipes, data and runs without the command line. */
export * as Backends from "./Backends.ts"
export * as Dataset from "./Dataset.ts"
export * as Experiment from "./Experiment.ts"
export * as Layers from "./Layers.ts"
export * as LoadedModel from "./LoadedModel.ts"
export * as Recipe from "./Recipe.ts"
export * as RecipeSource from "./RecipeSource.ts"
export * as Train from "./Train.ts"
