import type { components, paths } from "./schema.js";

export type { components, operations, paths } from "./schema.js";

/** The schemas of the API's document, by name: `Schemas["Engine"]`. */
export type Schemas = components["schemas"];

export type Method = "get" | "post" | "put" | "delete";

/** The paths of the API that have a method. */
export type PathOf<M extends Method> = {
  [P in keyof paths]: paths[P][M] extends { responses: unknown } ? P : never;
}[keyof paths];

/** The operation of a method and path. */
export type OperationOf<M extends Method, P extends PathOf<M>> = paths[P][M];

/** The body of an operation's 200. */
export type Result<O> = O extends { responses: { 200: { content: { "application/json": infer T } } } } ? T : string;

/** What an operation takes: `path` and `query` parameters, and a `body`. */
export type Input<O> = PathPart<O> & QueryPart<O> & BodyPart<O>;

type PathPart<O> = O extends { parameters: { path: infer T } } ? { path: T } : { path?: never };
type QueryPart<O> = O extends { parameters: { query?: infer T } } ? ([T] extends [never | undefined] ? { query?: never } : { query?: T }) : { query?: never };
type BodyPart<O> = O extends { requestBody: { content: { "application/json": infer T } } }
  ? { body: T }
  : O extends { requestBody?: { content: { "application/json": infer T } } }
    ? { body?: T }
    : { body?: never };

/** The query of a list. */
type QueryOf<P extends "/engines" | "/audit" | "/engines/{user_id}/snapshots"> = NonNullable<NonNullable<OperationOf<"get", P>["parameters"]["query"]>>;

/** Which engines of the product are listed. */
export type EngineFilter = Pick<QueryOf<"/engines">, "status" | "limit" | "offset" | "cursor">;
/** Which engines of all products are listed. */
export type FleetFilter = Omit<QueryOf<"/engines">, "offset">;
/** Which rows of the product's audit log are listed. */
export type AuditFilter = Omit<QueryOf<"/audit">, "product_id">;
/** Which rows of the audit log are listed. */
export type FleetAuditFilter = QueryOf<"/audit">;
/** Which page of the snapshots of an engine is listed. */
export type SnapshotPage = QueryOf<"/engines/{user_id}/snapshots">;
