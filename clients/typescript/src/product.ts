import { type Rate, rateOf } from "./errors.js";
import { type CallOptions, type More, type Options, Transport } from "./transport.js";
import type { AuditFilter, EngineFilter, Input, Method, OperationOf, PathOf, Result, Schemas, SnapshotPage } from "./types.js";
import { ageOf, pages } from "./pages.js";

export interface OrchOptions extends Options {
  /** The product's key. */
  platformKey: string;
}

/** Options of a change of an engine. */
export interface ChangeOptions extends CallOptions {
  /**
   * Makes the change the same call as every other one with this key and user within 24
   * hours: it returns the result of the first one that succeeded. Such a change may be
   * retried even if it is unknown whether it was carried out.
   */
  idempotencyKey?: string | undefined;
  /** How long the call waits for the change's end, in whole seconds; then it throws an {@link UnderWay}. */
  waitSeconds?: number | undefined;
}

export interface AdmitOptions extends Omit<ChangeOptions, "idempotencyKey"> {
  /** Create an engine if the user has none. */
  autoProvision?: boolean | undefined;
  /** Wake the engine if it sleeps. */
  autoWake?: boolean | undefined;
}

/** The result of an admit: `admitted` says whether it has an engine or the reason of the denial. */
export type Admission = Schemas["Admission"] & { rate?: Rate };

/** Orch is a client for a product's backend. It holds no connection and needs no end. */
export class Orch {
  readonly #transport: Transport;

  constructor(options: OrchOptions) {
    this.#transport = new Transport(options, { "X-Platform-Key": options.platformKey });
  }

  /** request makes a call that has no method here, and returns the body of its 200. */
  async request<M extends Method, P extends PathOf<M>>(method: M, path: P, input: Input<OperationOf<M, P>>, options: CallOptions = {}): Promise<Result<OperationOf<M, P>>> {
    return (await this.#transport.call(method, path, input, options)).body;
  }

  /** provision creates an engine for a user, and waits until it is usable. */
  async provision(user: string, options: ChangeOptions & { engineVersion?: string | undefined } = {}): Promise<Schemas["Provisioned"]> {
    const body = { user_id: user, ...(options.engineVersion !== undefined && { engine_version: options.engineVersion }) };
    return (await this.#transport.call("post", "/engines/provision", { body }, change(user, options))).body;
  }

  /** admit returns whether a user may use its engine now, and where it is. A denial is not an error. */
  async admit(user: string, options: AdmitOptions = {}): Promise<Admission> {
    const flags = { ...(options.autoProvision && { auto_provision: true }), ...(options.autoWake && { auto_wake: true }) };
    const input = { path: { user_id: user }, ...(Object.keys(flags).length > 0 && { body: flags }) };
    const { body, headers } = await this.#transport.call("post", "/engines/{user_id}/admit", input, { ...change(user, options), repeatable: true });
    const rate = rateOf(headers);
    return { ...body, ...(rate && { rate }) };
  }

  /** engine reads a user's engine, with its key. */
  async engine(user: string, options: CallOptions = {}): Promise<Schemas["ShownEngine"]> {
    return (await this.#transport.call("get", "/engines/{user_id}", { path: { user_id: user } }, { ...options, user })).body;
  }

  /** start starts a user's engine, and waits until it is usable. */
  async start(user: string, options: ChangeOptions = {}): Promise<Schemas["Started"]> {
    return (await this.#transport.call("post", "/engines/{user_id}/start", { path: { user_id: user } }, change(user, options))).body;
  }

  /** stop stops a user's engine, and waits until its process has ended. */
  async stop(user: string, options: ChangeOptions = {}): Promise<Schemas["Stopped"]> {
    return (await this.#transport.call("post", "/engines/{user_id}/stop", { path: { user_id: user } }, change(user, options))).body;
  }

  /** rotateKey replaces the key of a user's engine, and returns the new key. */
  async rotateKey(user: string, options: ChangeOptions = {}): Promise<string> {
    return (await this.#transport.call("post", "/engines/{user_id}/rotate-key", { path: { user_id: user } }, change(user, options))).body.new_api_key;
  }

  /** keepAwake prevents a user's running engine from being put to sleep for 1 to 3600 seconds, and returns until when. */
  async keepAwake(user: string, seconds: number, options: CallOptions = {}): Promise<Date> {
    const input = { path: { user_id: user }, body: { seconds: Math.ceil(seconds) } };
    const { body } = await this.#transport.call("post", "/engines/{user_id}/keep-awake", input, { ...options, user, repeatable: true });
    return new Date(body.keep_awake_until);
  }

  /**
   * snapshot takes a snapshot of the brain of a user's engine, and waits until it is stored. If it
   * takes longer than the service lets a call wait, it throws an {@link UnderWay}, and the
   * snapshot continues.
   */
  async snapshot(user: string, options: ChangeOptions & { label?: string | undefined } = {}): Promise<Schemas["Snapshot"]> {
    const input = { path: { user_id: user }, ...(options.label !== undefined && { body: { label: options.label } }) };
    return (await this.#transport.call("post", "/engines/{user_id}/snapshots", input, change(user, options))).body.snapshot;
  }

  /** snapshots lists one page of the snapshots of a user's engine, newest first. */
  async snapshots(user: string, page: SnapshotPage = {}, options: CallOptions = {}): Promise<Schemas["SnapshotList"]> {
    return (await this.#transport.call("get", "/engines/{user_id}/snapshots", { path: { user_id: user }, query: page }, { ...options, user })).body;
  }

  /** allSnapshots iterates over the snapshots of a user's engine, newest first. */
  async *allSnapshots(user: string, page: SnapshotPage = {}, options: CallOptions = {}): AsyncGenerator<Schemas["Snapshot"]> {
    yield* pages(async (cursor) => {
      const list = await this.snapshots(user, cursor === undefined ? page : { ...page, cursor }, options);
      return [list.snapshots, list.next_cursor];
    });
  }

  /** deleteSnapshot permanently deletes a snapshot of a user's engine. */
  async deleteSnapshot(user: string, snapshot: string, options: CallOptions = {}): Promise<void> {
    await this.#transport.call("delete", "/engines/{user_id}/snapshots/{snapshot_id}", { path: { user_id: user, snapshot_id: snapshot } }, { ...options, user });
  }

  /**
   * restore puts a user's engine onto the brain in one of its snapshots, by default the newest,
   * and waits until it is usable. The engine gets a new key. UnderWay is as for {@link snapshot}.
   */
  async restore(user: string, options: ChangeOptions & { snapshotId?: string | undefined } = {}): Promise<Schemas["Provisioned"]> {
    const input = { path: { user_id: user }, ...(options.snapshotId !== undefined && { body: { snapshot_id: options.snapshotId } }) };
    return (await this.#transport.call("post", "/engines/{user_id}/restore", input, change(user, options))).body;
  }

  /**
   * fork creates an engine for another user with the brain in a snapshot of a user's engine, by
   * default one that is taken now, and waits until it is usable. UnderWay is as for {@link snapshot}.
   */
  async fork(user: string, newUser: string, options: ChangeOptions & { snapshotId?: string | undefined } = {}): Promise<Schemas["Provisioned"]> {
    const body = { user_id: newUser, ...(options.snapshotId !== undefined && { snapshot_id: options.snapshotId }) };
    return (await this.#transport.call("post", "/engines/{user_id}/fork", { path: { user_id: user }, body }, change(user, options))).body;
  }

  /** destroy removes a user's engine, with its brain and key. */
  async destroy(user: string, options: ChangeOptions = {}): Promise<Schemas["Destroyed"]> {
    return (await this.#transport.call("delete", "/engines/{user_id}", { path: { user_id: user } }, change(user, options))).body;
  }

  /** engines lists one page of the product's engines, oldest first, without keys. */
  async engines(filter: EngineFilter = {}, options: CallOptions = {}): Promise<Schemas["EngineList"] & { ageMs: number }> {
    const { body, headers } = await this.#transport.call("get", "/engines", { query: filter }, options);
    return { ...body, ageMs: ageOf(headers) };
  }

  /** allEngines iterates over the engines of all pages from the filter's page on. */
  async *allEngines(filter: EngineFilter = {}, options: CallOptions = {}): AsyncGenerator<Schemas["ListedEngine"]> {
    const { offset, ...rest } = filter; // which excludes a cursor
    yield* pages(async (cursor) => {
      const list = await this.engines(cursor === undefined ? filter : { ...rest, cursor }, options);
      return [list.engines, list.next_cursor];
    });
  }

  /** status counts the product's engines. */
  async status(options: CallOptions = {}): Promise<Schemas["FleetStatus"] & { ageMs: number }> {
    const { body, headers } = await this.#transport.call("get", "/status", {}, options);
    return { ...body, ageMs: ageOf(headers) };
  }

  /** metrics returns the product's figures. */
  async metrics(options: CallOptions = {}): Promise<Schemas["Metrics"]> {
    return (await this.#transport.call("get", "/metrics", {}, options)).body;
  }

  /** audit lists one page of the product's audit log, newest first. */
  async audit(filter: AuditFilter = {}, options: CallOptions = {}): Promise<Schemas["AuditList"]> {
    return (await this.#transport.call("get", "/audit", { query: filter }, options)).body;
  }

  /** allAudit iterates over the rows of all pages from the filter's page on. */
  async *allAudit(filter: AuditFilter = {}, options: CallOptions = {}): AsyncGenerator<Schemas["AuditEntry"]> {
    yield* pages(async (cursor) => {
      const list = await this.audit(cursor === undefined ? filter : { ...filter, cursor }, options);
      return [list.entries, list.next_cursor];
    });
  }
}

function change(user: string, options: ChangeOptions): More {
  const { idempotencyKey, waitSeconds, signal, timeoutMs, requestId } = options;
  return {
    signal, timeoutMs, requestId, user, repeatable: idempotencyKey !== undefined,
    headers: {
      ...(idempotencyKey !== undefined && { "Idempotency-Key": idempotencyKey }),
      ...(waitSeconds !== undefined && { Prefer: `respond-async, wait=${Math.ceil(waitSeconds)}` }),
    },
  };
}
