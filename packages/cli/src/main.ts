/** The `tessera` command: flags here, work in `commands/`, loaded when it is asked for so that --help is quick. */
import { tesseraVersion } from "@tessera/core/version"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { describe } from "./Failure.ts"
import { logger } from "./Output.ts"

const about =
  <A>(description: string) =>
  (flag: Flag.Flag<A>): Flag.Flag<A> =>
    Flag.withDescription(flag, description)

const json = Flag.Boolean("json").pipe(Flag.withDefault(false), about("results and errors as JSON"))
const set = Flag.String("set").pipe(
  Flag.between(0, 1000),
  about("one setting, such as optimizer.learningRate=3e-4; may be repeated")
)
const backend = Flag.Literals("backend", ["cpu", "reference"]).pipe(
  Flag.withDefault("cpu" as const),
  about("what computes: native kernels, or the slow exact evaluator")
)
const threads = Flag.Int("threads").pipe(Flag.optional, about("threads of the cpu backend; all cores unless given"))
const machine = { backend, threads }

const spread = {
  mesh: Flag.String("mesh").pipe(
    Flag.optional,
    about("ranks by mesh axis, such as data=8,tensor=4 (stage, data, context, tensor)")
  ),
  strategy: Flag.String("strategy").pipe(
    Flag.optional,
    about("how they share the work, such as fsdp or zero1,sequence; see docs/parallelism.md")
  )
}

/** Options that were not given are left out. */
type Given<T> = { readonly [K in keyof T as T[K] extends Option.Option<unknown> ? never : K]: T[K] } & {
  readonly [K in keyof T as T[K] extends Option.Option<unknown> ? K : never]?: T[K] extends Option.Option<infer A>
    ? A
    : never
}
const given = <T extends object>(values: T): Given<T> =>
  Object.fromEntries(
    Object.entries(values).flatMap(([key, value]) =>
      Option.isOption(value) ? (Option.isSome(value) ? [[key, value.value]] : []) : [[key, value]]
    )
  ) as Given<T>

/** Loads a module when the command runs. */
const load = <A>(module: () => Promise<A>): Effect.Effect<A> => Effect.promise(module)

const recipe = Argument.String("recipe").pipe(
  Argument.withDescription("name of a built-in recipe, or a .json or .yaml file")
)

const train = Command.make(
  "train",
  {
    recipe,
    set,
    ...machine,
    run: Flag.String("run").pipe(Flag.optional, about("folder of the run; runs/NAME unless given")),
    resume: Flag.Boolean("resume").pipe(
      Flag.withDefault(false),
      about("go on from the newest checkpoint of the run folder")
    ),
    data: Flag.String("data").pipe(
      Flag.optional,
      about("training data: mnist, idx:FOLDER, folder:FOLDER, shards:PATTERN")
    ),
    test: Flag.String("test").pipe(Flag.optional, about("test data, in the same forms")),
    json
  },
  (input) =>
    Effect.flatMap(
      load(() => import("./commands/train.ts")),
      (m) => m.train(given(input))
    )
).pipe(
  Command.withDescription("Trains a recipe: live progress, a run folder with checkpoints, curves and a report"),
  Command.withExamples([
    { command: "tessera train mnist", description: "60,000 digits, about a minute" },
    { command: "tessera train cifar10-small --set epochs=10 --run runs/short", description: "CIFAR-10 from shards" },
    {
      command: "tessera train mnist --data idx:fashion --test idx:fashion",
      description: "the same on other data of that size"
    },
    { command: "tessera train mnist --resume", description: "goes on where it stopped" }
  ])
)

const quickstart = Command.make("quickstart", { set, ...machine, json }, (input) =>
  Effect.flatMap(
    load(() => import("./commands/train.ts")),
    (m) => m.quickstart(given(input))
  )
).pipe(
  Command.withDescription("Trains a vision transformer on MNIST into runs/mnist and says what to try next"),
  Command.withExamples([{ command: "tessera quickstart", description: "from nothing to a trained model" }])
)

const model = {
  ...machine,
  weights: Flag.String("weights").pipe(Flag.optional, about("a safetensors file of another library instead of a run")),
  layout: Flag.Literals("layout", ["vit-mnist"]).pipe(
    Flag.withDefault("vit-mnist" as const),
    about("whose names the tensors of --weights have")
  ),
  json
}

const evaluate = Command.make(
  "evaluate",
  {
    run: Argument.String("run").pipe(Argument.withDescription("run folder or checkpoint"), Argument.optional),
    data: Flag.String("data").pipe(Flag.optional, about("test data; the recipe's unless given")),
    ...model
  },
  (input) =>
    Effect.flatMap(
      load(() => import("./commands/evaluate.ts")),
      (m) => m.evaluate(given(input))
    )
).pipe(
  Command.withDescription("Accuracy and loss of a run or checkpoint on test data"),
  Command.withExamples([
    { command: "tessera evaluate runs/mnist --json", description: "accuracy, loss, count" },
    {
      command: "tessera evaluate --weights model.safetensors --layout vit-mnist --data mnist",
      description: "published weights"
    }
  ])
)

const predict = Command.make(
  "predict",
  {
    run: Argument.String("run").pipe(Argument.withDescription("run folder or checkpoint")),
    images: Argument.String("image").pipe(Argument.withDescription("pictures"), Argument.variadic({ min: 1 })),
    top: Flag.Int("top").pipe(Flag.withDefault(3), about("classes shown for each picture")),
    attention: Flag.String("attention").pipe(Flag.optional, about("writes where the model looked as PNG")),
    ...machine,
    json
  },
  (input) =>
    Effect.flatMap(
      load(() => import("./commands/predict.ts")),
      (m) => m.predict({ ...given(input), layout: "vit-mnist" })
    )
).pipe(
  Command.withDescription("The most probable classes of pictures"),
  Command.withExamples([
    {
      command: "tessera predict runs/mnist digit.png --attention attention.png",
      description: "classes and attention rollout"
    }
  ])
)

const explain = Command.make(
  "explain",
  {
    recipe,
    set,
    ...machine,
    ...spread,
    diff: Flag.String("diff").pipe(
      Flag.between(0, 1000),
      about("a setting of the configuration to compare with, such as strategy=zero1 or precision=bf16; may be repeated")
    ),
    config: Flag.Boolean("config").pipe(Flag.withDefault(false), about("every setting and where it came from")),
    program: Flag.Boolean("program").pipe(Flag.withDefault(false), about("prints the program of a training step")),
    json
  },
  (input) =>
    Effect.flatMap(
      load(() => import("./commands/explain.ts")),
      (m) => m.explain(given(input))
    )
).pipe(
  Command.withDescription("Parameters, FLOPs, memory, collectives, types and learning rates of a recipe, on any mesh"),
  Command.withExamples([
    {
      command: "tessera explain vit-b16-nemo --set batchSize=8 --set microbatches=1",
      description: "what a step costs"
    },
    {
      command: "tessera explain vit-b16-nemo --mesh data=8,tensor=4 --strategy fsdp --diff strategy=zero1",
      description: "what ranks hold and send, under two strategies"
    },
    { command: "tessera explain mnist --config", description: "where each value came from" }
  ])
)

const launch = Command.make(
  "launch",
  {
    ranks: Flag.Int("ranks").pipe(about("processes of this machine that train together")),
    restarts: Flag.Int("restarts").pipe(
      Flag.withDefault(0),
      about("how often the job may begin again from its newest checkpoint when a rank is lost")
    ),
    timeout: Flag.Int("timeout").pipe(
      Flag.withDefault(600),
      about("seconds that ranks wait for one that is alive but does not come")
    ),
    command: Argument.String("command").pipe(
      Argument.withDescription("after --: the command of every rank, such as train mnist"),
      Argument.variadic({ min: 1 })
    )
  },
  (input) =>
    Effect.flatMap(
      load(() => import("./commands/launch.ts")),
      (m) => m.launch(input)
    )
).pipe(
  Command.withDescription("Runs a training on several ranks, each a process of this machine"),
  Command.withExamples([
    { command: "tessera launch --ranks 2 -- train mnist", description: "two ranks share every batch" },
    {
      command: "tessera launch --ranks 2 --restarts 3 -- train mnist --set strategy.mesh.tensor=2",
      description: "each holds half of every layer; begins again when one is lost"
    }
  ])
)

const plan = Command.make(
  "plan",
  {
    recipe,
    set,
    ...machine,
    devices: Flag.String("devices").pipe(about("how many of which device, such as 32xA100-80G")),
    mesh: Flag.String("mesh").pipe(
      Flag.optional,
      about("ranks by mesh axis; the devices share the batch unless given")
    ),
    strategy: Flag.String("strategy").pipe(Flag.optional, about("how ranks share the work, such as fsdp")),
    search: Flag.Boolean("search").pipe(Flag.withDefault(false), about("tries meshes and strategies, fastest first")),
    samples: Flag.Int("samples").pipe(Flag.optional, about("samples of an epoch, for its time")),
    picture: Flag.String("picture").pipe(Flag.optional, about("writes memory and one step as an HTML file")),
    json
  },
  (input) =>
    Effect.flatMap(
      load(() => import("./commands/plan.ts")),
      (m) => m.plan(given(input))
    )
).pipe(
  Command.withDescription("Whether a recipe fits on a cluster and how fast it would be; nothing is run"),
  Command.withExamples([
    {
      command: "tessera plan vit-g14-rosetta --devices 32xA100-80G --set microbatches=8 --picture plan.html",
      description: "memory, step time, speed"
    },
    { command: "tessera plan vit-g14-rosetta --devices 32xA100-80G --search", description: "which mesh is fastest" }
  ])
)

const checkpointPath = Argument.String("path").pipe(
  Argument.withDescription("a run folder (its newest checkpoint), or one step-N folder")
)
const target = Argument.String("to").pipe(Argument.withDescription("an empty folder for the new checkpoint"))
const loadCheckpoint = load(() => import("./commands/checkpoint.ts"))

const checkpoint = Command.make("checkpoint").pipe(
  Command.withDescription("Checkpoints: what they hold, whether they are sound, in other parts"),
  Command.withSubcommands([
    Command.make("inspect", { path: checkpointPath, json }, (input) =>
      Effect.flatMap(loadCheckpoint, (m) => m.inspect(input))
    ).pipe(Command.withDescription("What a checkpoint holds, from its manifest")),
    Command.make("verify", { path: checkpointPath, json }, (input) =>
      Effect.flatMap(loadCheckpoint, (m) => m.verify(input))
    ).pipe(Command.withDescription("Reads every byte and compares it with the manifest")),
    Command.make(
      "reshard",
      {
        path: checkpointPath,
        to: target,
        parts: Flag.Int("parts").pipe(about("files as so many ranks would write")),
        json
      },
      (input) => Effect.flatMap(loadCheckpoint, (m) => m.reshard(input))
    ).pipe(Command.withDescription("Writes a checkpoint again in another number of parts")),
    Command.make("merge", { path: checkpointPath, to: target, json }, (input) =>
      Effect.flatMap(loadCheckpoint, (m) => m.reshard({ ...input, parts: 1 }))
    ).pipe(Command.withDescription("Writes the parts of a checkpoint as one"))
  ])
)

const models = Command.make("models", { json }, (input) =>
  Effect.flatMap(
    load(() => import("./commands/models.ts")),
    (m) => m.models(input)
  )
).pipe(Command.withDescription("Every preset with its parameters and FLOPs"))

const doctor = Command.make("doctor", { json }, (input) =>
  Effect.flatMap(
    load(() => import("./commands/doctor.ts")),
    (m) => m.doctor(input)
  )
).pipe(Command.withDescription("What this machine has for training, what is missing and how to get it"))

const tessera = Command.make("tessera").pipe(
  Command.withDescription("Trains, evaluates and explains vision transformers"),
  Command.withExamples([
    { command: "tessera quickstart", description: "train on MNIST, evaluate, see what to do next" }
  ]),
  Command.withSubcommands([quickstart, train, launch, evaluate, predict, explain, plan, checkpoint, models, doctor])
)

const argumentsGiven = process.argv.slice(2)
const wantsDebug = argumentsGiven.some(
  (a, i) => a === "--log-level=debug" || (a === "debug" && argumentsGiven[i - 1] === "--log-level")
)

/** Says what went wrong, without a stack trace unless debugging. */
const report = (cause: Cause.Cause<unknown>): void => {
  const failure = describe(cause)
  // Usage errors were shown with the help already; an interrupted run has said where it was saved.
  if (failure.kind === "ShowHelp" || failure.exitCode === 130) return
  const debug = wantsDebug || failure.kind === "Defect"
  if (argumentsGiven.includes("--json")) {
    process.stdout.write(
      `${JSON.stringify({ error: failure.kind, message: failure.message, exitCode: failure.exitCode })}\n`
    )
  } else process.stderr.write(`tessera: ${failure.message}\n`)
  if (debug) process.stderr.write(`${Cause.pretty(cause)}\n`)
}

// A reader that has seen enough (head, less) is no failure.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0)
  throw error
})

tessera.pipe(
  Command.run({ version: tesseraVersion }),
  Effect.tapCause((cause) => Effect.sync(() => report(cause))),
  Effect.provide([NodeServices.layer, logger]),
  NodeRuntime.runMain({
    disableErrorReporting: true,
    teardown: (exit, onExit) => onExit(Exit.isSuccess(exit) ? 0 : describe(exit.cause).exitCode)
  })
)
