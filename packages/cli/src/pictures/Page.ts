/** A page in one file: nothing is fetched when it is read. */

/** Rows of a table, in order. */
export type Facts = ReadonlyArray<readonly [name: string, value: string]>

export const escape = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;")

export const table = (facts: Facts): string =>
  `<table><tbody>${facts.map(([name, value]) => `<tr><th scope="row">${escape(name)}</th><td>${escape(value)}</td></tr>`).join("")}</tbody></table>`

export const section = (title: string, body: string, wide = false): string =>
  `<section${wide ? ` class="wide"` : ""}><h2>${escape(title)}</h2>${body}</section>`

/** Numbers that are to be seen first. */
export const tiles = (all: Facts): string =>
  `<div class="tiles">${all.map(([name, value]) => `<div class="tile"><b>${escape(value)}</b><span>${escape(name)}</span></div>`).join("")}</div>`

const style = `
:root{color-scheme:light dark;--ink:#1f2937;--muted:#6b7280;--paper:#ffffff;--back:#f5f6f8;--line:#e5e7eb;--accent:#2563eb}
@media (prefers-color-scheme:dark){:root{--ink:#e5e7eb;--muted:#9ca3af;--paper:#12161c;--back:#0b0e12;--line:#2d3540;--accent:#60a5fa}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 20px 64px}
header p{margin:4px 0 0;color:var(--muted);max-width:70ch}
h1{font-size:28px;line-height:1.2;margin:0}
h2{font-size:16px;margin:0 0 12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0}
.tile,section{background:var(--paper);border:1px solid var(--line);border-radius:12px}
.tile{padding:16px 18px}
.tile b{display:block;font-size:26px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:16px}
section{padding:18px 20px;min-width:0}
.wide{grid-column:1/-1}
svg,img{display:block;max-width:100%;height:auto}
img{border-radius:8px;background:#fff}
figure{margin:0}figcaption{color:var(--muted);font-size:13px;margin-top:8px}
table{width:100%;border-collapse:collapse;font-size:14px}
th,td{padding:6px 0;border-top:1px solid var(--line);text-align:left;vertical-align:top;overflow-wrap:anywhere}
tr:first-child th,tr:first-child td{border-top:0}
th{color:var(--muted);font-weight:400;width:45%;padding-right:12px}
td{font-variant-numeric:tabular-nums}
footer{color:var(--muted);font-size:13px;margin-top:24px}`

export interface Content {
  readonly title: string
  /** One sentence. */
  readonly summary: string
  readonly tiles: string
  readonly sections: ReadonlyArray<string>
  readonly footer: string
}

/** The page as HTML. */
export const page = (content: Content): string => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(content.title)}</title>
<style>${style}</style>
</head>
<body>
<main>
<header><h1>${escape(content.title)}</h1><p>${escape(content.summary)}</p></header>
${content.tiles}
<div class="grid">
${content.sections.join("\n")}
</div>
<footer>${escape(content.footer)}</footer>
</main>
</body>
</html>
`
