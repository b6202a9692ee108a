/** A worker thread of `Augmenter.layerWorkers`. Imports nothing heavy. */
import { parentPort } from "node:worker_threads"
import type { Pipeline } from "./Augment.ts"
import { type Done, fromSpec, type Job, writeRow } from "./Rows.ts"

let known: { readonly text: string; readonly pipeline: Pipeline } | null = null

const pipelineOf = (job: Job): Pipeline => {
  const text = JSON.stringify(job.pipeline)
  if (known?.text !== text) known = { text, pipeline: fromSpec(job.pipeline) }
  return known.pipeline
}

const work = (job: Job): Done => {
  const pipeline = pipelineOf(job)
  const out = new Float32Array(job.out)
  const size = pipeline.height * pipeline.width * pipeline.channels
  for (const [picture, image] of job.images.entries()) {
    const found = writeRow(image, job.keys[picture]!, pipeline, out, job.at + picture * size)
    if (found !== null) return { id: job.id, mismatch: { picture, found } }
  }
  return { id: job.id, mismatch: null }
}

parentPort?.on("message", (job: Job) => parentPort?.postMessage(work(job)))
