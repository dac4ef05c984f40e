import { OrchError } from "./errors.js";

/**
 * How often a call is made, and the wait in between.
 *
 * A call is retried if the service returned 503 or 429, which means that the same call may
 * succeed later, or if no connection could be made, so that nothing was sent. If it is
 * unknown whether a call was carried out (the connection broke, or a proxy returned 503 or
 * 429), it is retried only if that is harmless: reads, admits, keep-awakes, policies, and
 * changes of engines with an idempotency key. All other errors are thrown at once, as are
 * errors that require a longer wait than `maxWaitMs`, or than the call's timeout allows.
 *
 * These are the rules of the Go client.
 */
export interface RetryPolicy {
  /** The maximum number of attempts; without it: 1. */
  attempts?: number | undefined;
  /**
   * The wait after the first attempt, in milliseconds; without it: 100. It doubles with each
   * attempt up to `maxWaitMs`, and is shortened by a random part of up to a half. A longer
   * Retry-After of the service takes precedence.
   */
  minWaitMs?: number | undefined;
  /** Without it: 30,000. */
  maxWaitMs?: number | undefined;
}

/** The circumstances of one call. */
export interface Circumstances {
  /** Repeating the call has no further effect. */
  repeatable: boolean;
  /** When the call's timeout ends it, as performance.now() says it; absent: never. */
  deadline: number | undefined;
  signal: AbortSignal | undefined;
}

/** retrying makes attempts until one succeeds, fails permanently, or may not be retried. */
export async function retrying<T>(policy: RetryPolicy, of: Circumstances, attempt: () => Promise<T>): Promise<T> {
  const most = policy.maxWaitMs || 30_000;
  for (let made = 1, wait = policy.minWaitMs || 100; ; made++, wait *= 2) {
    try {
      return await attempt();
    } catch (err) {
      if (made >= (policy.attempts ?? 1) || of.signal?.aborted || !again(err, of.repeatable)) {
        throw err;
      }
      const asked = err instanceof OrchError ? (err.retryAfterMs ?? 0) : 0;
      const pause = Math.max(jittered(Math.min(wait, most)), asked);
      if (pause > most || (of.deadline !== undefined && performance.now() + pause > of.deadline)) {
        throw err;
      }
      await sleep(pause, of.signal);
    }
  }
}

/** jittered returns a random time from half of ms to ms: who failed together does not retry together. */
function jittered(ms: number): number {
  return ms - (Math.random() * ms) / 2;
}

/** sleep waits, or rejects with the signal's reason. */
function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", end);
      resolve();
    }, ms);
    signal?.addEventListener("abort", end, { once: true });
  });
}

/** again reports whether a call that failed with err may be retried. */
function again(err: unknown, repeatable: boolean): boolean {
  if (err instanceof OrchError) {
    return (err.status === 503 || err.status === 429) && (err.code !== undefined || repeatable);
  }
  const codes = codesOf(err);
  if (codes.includes("ECONNREFUSED")) {
    return true;
  }
  return repeatable && codes.some((code) => broken.has(code));
}

/** A connection that broke, in the words of Node and of its fetch. */
const broken = new Set(["ECONNRESET", "EPIPE", "UND_ERR_SOCKET"]);

/**
 * codesOf returns the codes of an error of fetch, which hides them in its cause. If a name
 * has several addresses, the cause has an error for each, and none could be connected to.
 */
function codesOf(err: unknown): string[] {
  const codes: string[] = [];
  for (let at = err as Failure | undefined | null, depth = 0; at && depth < 5; at = at.cause, depth++) {
    codes.push(...[at, ...(at.errors ?? [])].map((one) => one.code).filter((code) => typeof code === "string"));
  }
  return codes;
}

/** What an Error or an AggregateError of Node may have. */
interface Failure {
  code?: unknown;
  cause?: Failure | null;
  errors?: Failure[];
}
