/**
 * Learned and random augmentation policies, with torchvision's operations, magnitudes and nearest-neighbour, black-filled
 * geometry.
 *
 * @source pytorch/vision torchvision/transforms/autoaugment.py
 */
import { onImage, type Operation } from "./Augment.ts"
import * as Color from "./Color.ts"
import type { RawImage } from "./Image.ts"
import type { Random } from "./Random.ts"

/** `level` in `[0, 1]` is the strength; `sign` is -1 or 1. */
type Change = (image: RawImage, level: number, sign: number) => RawImage

const enhance =
  (change: (image: RawImage, factor: number) => RawImage): Change =>
  (image, level, sign) =>
    change(image, 1 + 0.9 * level * sign)

const changes = {
  identity: (image) => image,
  shearX: (image, level, sign) => Color.affine(image, [1, 0.3 * level * sign, 0, 0, 1, 0]),
  shearY: (image, level, sign) => Color.affine(image, [1, 0, 0, 0.3 * level * sign, 1, 0]),
  translateX: (image, level, sign) =>
    Color.affine(image, [1, 0, -Math.trunc((150 / 331) * image.width * level) * sign, 0, 1, 0]),
  translateY: (image, level, sign) =>
    Color.affine(image, [1, 0, 0, 0, 1, -Math.trunc((150 / 331) * image.height * level) * sign]),
  rotate: (image, level, sign) => Color.rotate(image, 30 * level * sign),
  brightness: enhance(Color.brightness),
  color: enhance(Color.saturation),
  contrast: enhance(Color.contrast),
  sharpness: enhance(Color.sharpness),
  posterize: (image, level) => Color.posterize(image, 8 - Math.round(4 * level)),
  solarize: (image, level) => Color.solarize(image, 255 * (1 - level)),
  autoContrast: (image) => Color.autoContrast(image),
  equalize: (image) => Color.equalize(image),
  invert: (image) => Color.invert(image)
} satisfies Record<string, Change>

type ChangeName = keyof typeof changes

const randomly: ReadonlyArray<ChangeName> = [
  "identity",
  "shearX",
  "shearY",
  "translateX",
  "translateY",
  "rotate",
  "brightness",
  "color",
  "contrast",
  "sharpness",
  "posterize",
  "solarize",
  "autoContrast",
  "equalize"
]

const signOf = (random: Random): number => (random.unit() < 0.5 ? -1 : 1)

/**
 * `count` operations drawn from 14 with replacement, each at `magnitude` of `bins` (0 is none, `bins - 1` the most).
 *
 * @source Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (2019)
 */
export const randAugment = (count = 2, magnitude = 9, bins = 31): Operation =>
  onImage(
    "randAugment",
    (image, random) => {
      let changed = image
      for (let i = 0; i < count; i++) {
        const change: Change = changes[randomly[random.below(randomly.length)]!]
        changed = change(changed, Math.min(1, magnitude / (bins - 1)), signOf(random))
      }
      return changed
    },
    [count, magnitude, bins]
  )

/** Operation, its chance, and its magnitude in tenths: 0 to 9. */
type Step = readonly [ChangeName, number, number]

const imagenetPolicy: ReadonlyArray<readonly [Step, Step]> = [
  [
    ["posterize", 0.4, 8],
    ["rotate", 0.6, 9]
  ],
  [
    ["solarize", 0.6, 5],
    ["autoContrast", 0.6, 0]
  ],
  [
    ["equalize", 0.8, 0],
    ["equalize", 0.6, 0]
  ],
  [
    ["posterize", 0.6, 7],
    ["posterize", 0.6, 6]
  ],
  [
    ["equalize", 0.4, 0],
    ["solarize", 0.2, 4]
  ],
  [
    ["equalize", 0.4, 0],
    ["rotate", 0.8, 8]
  ],
  [
    ["solarize", 0.6, 3],
    ["equalize", 0.6, 0]
  ],
  [
    ["posterize", 0.8, 5],
    ["equalize", 1, 0]
  ],
  [
    ["rotate", 0.2, 3],
    ["solarize", 0.6, 8]
  ],
  [
    ["equalize", 0.6, 0],
    ["posterize", 0.4, 6]
  ],
  [
    ["rotate", 0.8, 8],
    ["color", 0.4, 0]
  ],
  [
    ["rotate", 0.4, 9],
    ["equalize", 0.6, 0]
  ],
  [
    ["equalize", 0, 0],
    ["equalize", 0.8, 0]
  ],
  [
    ["invert", 0.6, 0],
    ["equalize", 1, 0]
  ],
  [
    ["color", 0.6, 4],
    ["contrast", 1, 8]
  ],
  [
    ["rotate", 0.8, 8],
    ["color", 1, 2]
  ],
  [
    ["color", 0.8, 8],
    ["solarize", 0.8, 7]
  ],
  [
    ["sharpness", 0.4, 7],
    ["invert", 0.6, 0]
  ],
  [
    ["shearX", 0.6, 5],
    ["equalize", 1, 0]
  ],
  [
    ["color", 0.4, 0],
    ["equalize", 0.6, 0]
  ],
  [
    ["equalize", 0.4, 0],
    ["solarize", 0.2, 4]
  ],
  [
    ["solarize", 0.6, 5],
    ["autoContrast", 0.6, 0]
  ],
  [
    ["invert", 0.6, 0],
    ["equalize", 1, 0]
  ],
  [
    ["color", 0.6, 4],
    ["contrast", 1, 8]
  ],
  [
    ["equalize", 0.8, 0],
    ["equalize", 0.6, 0]
  ]
]

/**
 * One of the 25 pairs of operations learned on ImageNet, each with its own chance and magnitude.
 *
 * @source Cubuk et al., "AutoAugment: Learning Augmentation Policies from Data" (2018), table 9
 */
export const autoAugmentImagenet = (): Operation =>
  onImage(
    "autoAugmentImagenet",
    (image, random) => {
      let changed = image
      for (const [name, chance, magnitude] of imagenetPolicy[random.below(imagenetPolicy.length)]!) {
        const drawn = random.unit()
        const sign = signOf(random)
        const change: Change = changes[name]
        if (drawn <= chance) changed = change(changed, magnitude / 9, sign)
      }
      return changed
    },
    []
  )
