// Holds the OpenAPI document to redocly.yaml, and to its own warnings.
import { fileURLToPath } from "node:url";
import { formatProblems, getTotals, lint, loadConfig } from "@redocly/openapi-core";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));
const config = await loadConfig({ configPath: at("redocly.yaml") });
const problems = await lint({ ref: at("../../../gen/openapi/endsession.openapi.json"), config });
const totals = getTotals(problems);
formatProblems(problems, { format: "codeframe", totals, version: "" });
process.exitCode = totals.errors + totals.warnings > 0 ? 1 : 0;
