import type { components } from "./schema.js";

/** The codes of the service's errors. A later version of the service may send others. */
export type ErrorCode = components["schemas"]["ErrorCode"];

/** The state of a product's rate limit, after an admit. */
export interface Rate {
  /** Admits per minute. */
  limit: number;
  /** Admits that are left now. */
  remaining: number;
  /** Milliseconds until the whole burst is available again. */
  resetMs: number;
}

/** A response with a status other than 2xx. Branch on `code`. */
export class OrchError extends Error {
  override readonly name: string = "OrchError";
  readonly status: number;
  /** Absent: the response is not from the service, but for example from a proxy. */
  readonly code: ErrorCode | undefined;
  /** The id by which the service's log and audit log know the call. */
  readonly requestId: string | undefined;
  /** Milliseconds after which the same call may succeed; absent: the response does not say. */
  readonly retryAfterMs: number | undefined;
  /** Of an admit, if the product has a rate limit. */
  readonly rate: Rate | undefined;

  constructor(status: number, headers: Headers, body: string) {
    const { code, message, request_id } = errorIn(body);
    super(`${code ?? "not a response of orch"} (${status})${message ? `: ${message}` : ""}`);
    this.status = status;
    this.code = code as ErrorCode | undefined;
    this.requestId = request_id ?? headers.get("X-Request-Id") ?? undefined;
    const seconds = wholeNumber(headers.get("Retry-After"));
    this.retryAfterMs = seconds ? seconds * 1000 : undefined;
    this.rate = rateOf(headers);
  }
}

/** isOrchError reports whether a value is an {@link OrchError}, with this code if one is given. */
export function isOrchError(err: unknown): err is OrchError;
export function isOrchError<C extends ErrorCode>(err: unknown, code: C): err is OrchError & { readonly code: C };
export function isOrchError(err: unknown, code?: ErrorCode): boolean {
  return err instanceof OrchError && (code === undefined || err.code === code);
}

/**
 * Thrown by a change whose caller chose not to wait for its end (`waitSeconds`). The change
 * continues: {@link Orch.engine} shows its `operation`, and `last_operation` after its end.
 */
export class UnderWay extends Error {
  override readonly name: string = "UnderWay";
  readonly engine: components["schemas"]["UnderWay"];

  constructor(engine: components["schemas"]["UnderWay"]) {
    super(engine.operation ? `the operation (${engine.operation.kind}) is in progress` : "the operation ended meanwhile");
    this.engine = engine;
  }
}

/** rateOf reads the RateLimit headers of a response. */
export function rateOf(headers: Headers): Rate | undefined {
  const [limit, remaining, reset] = ["Limit", "Remaining", "Reset"].map((name) => wholeNumber(headers.get(`RateLimit-${name}`)));
  return limit === undefined ? undefined : { limit, remaining: remaining ?? 0, resetMs: (reset ?? 0) * 1000 };
}

function wholeNumber(text: string | null): number | undefined {
  return text !== null && /^\d+$/.test(text) ? Number(text) : undefined;
}

/** errorIn reads the error in a body. If it is not JSON of the service, it has no fields. */
function errorIn(body: string): { code?: string; message?: string; request_id?: string } {
  try {
    const { error } = JSON.parse(body) as { error?: Record<string, unknown> };
    const text = (name: string) => (typeof error?.[name] === "string" && error[name] ? { [name]: error[name] } : {});
    return { ...text("code"), ...text("message"), ...text("request_id") };
  } catch {
    return {};
  }
}
