// Ends a person's sessions everywhere, and waits until every target is done.
//
//	ENDSESSION_URL=https://gateway.example:8080 ENDSESSION_API_KEY=esk_… node dist/invalidate.js alice "laptop stolen"
//
// The exit status is 0 if every target succeeded, 1 otherwise, 2 if the call was refused.
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Invalidation = components["schemas"]["Invalidation"];
type Status = components["schemas"]["Status"];

const key = process.env["ENDSESSION_API_KEY"];
const client = createClient<paths>({
  baseUrl: process.env["ENDSESSION_URL"] ?? "http://127.0.0.1:8080",
  headers: key === undefined ? {} : { Authorization: `Bearer ${key}` },
});

// The reason why a call was refused, which programs act on; the message is for people.
function reason(status: Status): string {
  return status.details.find((d) => d.reason !== undefined)?.reason ?? "UNKNOWN";
}

// Calls until there is an answer. Everything that is sent can be sent again: the request id makes it the same call.
async function call<T>(f: () => Promise<{ data?: T; error?: Status; response: Response }>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    let wait = Math.min(2 ** attempt * 100, 10_000) * (0.5 + Math.random() / 2);
    try {
      const { data, error, response } = await f();
      if (data !== undefined) {
        return data;
      }
      const again = [429, 503, 504].includes(response.status);
      if (!again || attempt === 8) {
        throw new Refusal(`${error === undefined ? response.status : `${reason(error)}: ${error.message}`}`);
      }
      wait = Math.max(wait, 1000 * Number(response.headers.get("Retry-After") ?? 0));
    } catch (e) {
      if (e instanceof Refusal || attempt === 8) {
        throw e;
      }
    }
    await sleep(wait);
  }
}

class Refusal extends Error {}

async function invalidate(user: string, why: string): Promise<Invalidation> {
  const body = { selector: { user: { id: user } }, reason: why, requestId: randomUUID() };
  let { invalidation } = await call(() => client.POST("/v1/sessions:invalidate", { body }));
  while (invalidation !== undefined && invalidation.state === "INVALIDATION_STATE_RUNNING") {
    const id = invalidation.name.replace("invalidations/", "");
    ({ invalidation } = await call(() =>
      client.GET("/v1/invalidations/{invalidation}", { params: { path: { invalidation: id }, query: { waitTimeout: "60s" } } }),
    ));
  }
  if (invalidation === undefined) {
    throw new Error("an answer without an invalidation");
  }
  return invalidation;
}

const [user, why = "by the example"] = process.argv.slice(2);
if (user === undefined) {
  console.error("usage: invalidate USER [REASON]");
  process.exit(2);
}
try {
  const done = await invalidate(user, why);
  console.log(`${done.name}: ${done.state.replace("INVALIDATION_STATE_", "")}`);
  for (const run of done.runs) {
    // An absent count is unknown. It is not 0.
    const count = run.invalidatedCount === undefined ? "unknown" : `${run.countIsMinimum ? "at least " : ""}${run.invalidatedCount}`;
    console.log(`${run.target}: ${run.state.replace("RUN_STATE_", "")}, sessions ended: ${count}`);
    for (const w of run.warnings ?? []) {
      console.log(`${run.target}: warning ${w.code}: ${w.message}`);
    }
    if (run.error !== undefined) {
      console.log(`${run.target}: ${run.error.reason}: ${run.error.message}`);
    }
  }
  process.exitCode = done.state === "INVALIDATION_STATE_SUCCEEDED" ? 0 : 1;
} catch (e) {
  console.error(e instanceof Error ? e.message : e);
  process.exitCode = 2;
}
