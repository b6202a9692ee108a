/** Compiles every package into its dist folder: `node tools/build.ts`. What has no source any more goes. */
import { spawnSync } from "node:child_process"
import { existsSync, globSync, rmSync } from "node:fs"
import { join } from "node:path"
import { packages, root } from "./sources.ts"

const compiled = spawnSync(join(root, "node_modules/.bin/tsc"), ["-b", ...packages.map((name) => `packages/${name}`)], {
  cwd: root,
  stdio: "inherit"
})

for (const name of packages) {
  const dist = join(root, "packages", name, "dist")
  for (const file of globSync("**/*.{js,d.ts,js.map,d.ts.map}", { cwd: dist })) {
    const source = join(root, "packages", name, "src", file.replace(/\.(d\.ts|js)(\.map)?$/, ".ts"))
    if (!existsSync(source)) rmSync(join(dist, file), { force: true })
  }
}
process.exitCode = compiled.status ?? 1
