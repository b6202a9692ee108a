#!/usr/bin/env node
// In the repository the sources run as they are (Node strips the types); an installed package runs its compiled files.
import { existsSync } from "node:fs"
const compiled = new URL("../dist/main.js", import.meta.url)
const sources = new URL("../src/main.ts", import.meta.url)
await import((import.meta.url.includes("/node_modules/") || !existsSync(sources) ? compiled : sources).href)
