export { OrchAdmin, type OrchAdminOptions } from "./admin.js";
export { type ErrorCode, isOrchError, OrchError, type Rate, UnderWay } from "./errors.js";
export { type Admission, type AdmitOptions, type ChangeOptions, Orch, type OrchOptions } from "./product.js";
export type { RetryPolicy } from "./retry.js";
export type { CallOptions, Options } from "./transport.js";
export type { AuditFilter, components, EngineFilter, FleetAuditFilter, FleetFilter, operations, paths, Schemas, SnapshotPage } from "./types.js";
