//! How a report looks.

pub(super) const CSS: &str = "
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #62646b; --paper: #ffffff; --line: #d9dade; --stripe: #f6f7f9; --link: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e8; --soft: #a0a3ab; --paper: #17181b; --line: #3a3c42; --stripe: #1f2125; --link: #56b4e9 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, 'DejaVu Sans', Verdana, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line) }
p { max-width: 44rem; margin: .6rem 0 }
a { color: var(--link) }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 1.2rem 0; font-size: .92rem }
dl { display: grid; gap: .15rem; margin: 0; font-size: .92rem }
dl div { display: grid; grid-template-columns: 11rem 1fr; gap: 1rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
code { font: .92em ui-monospace, 'DejaVu Sans Mono', Menlo, monospace; background: var(--stripe); padding: .05em .3em; border-radius: 3px }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .9rem }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem }
th, td { padding: .28rem .8rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom }
tbody tr:nth-child(even) { background: var(--stripe) }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
figure { margin: 1.2rem 0 }
figure svg { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 4px }
main:has(.beside) { max-width: 120rem }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 0 1.2rem }
figcaption { max-width: 44rem; margin-top: .4rem; color: var(--soft); font-size: .9rem }
@media print { h2 { break-after: avoid } figure, tr { break-inside: avoid } }
";
