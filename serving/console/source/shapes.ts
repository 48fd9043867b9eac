/** Shapes: what the gateway answers, as far as the page reads it. */

export type Role = "member" | "tenant_admin" | "platform_admin";

export interface Who {
  tenant: string;
  key_id: string;
  key_name: string | null;
  user: string | null;
  role: Role;
  ends_at: number;
}

export interface Session {
  service: string;
  version: string;
  currency: string;
  sign_ins: { issuer: string; title: string; url: string }[];
  who: Who | null;
}

/** A session of somebody. */
export type SignedIn = Session & { who: Who };

export interface Page<Item> {
  data: Item[];
  next: string | null;
}

export interface ModelCard {
  id: string;
  max_model_len?: number | null;
  default_output_tokens?: number | null;
  parent?: string | null;
}

export interface Limits {
  requests_per_minute?: number;
  tokens_per_minute?: number;
  tokens_per_day?: number;
  tokens_per_month?: number;
  open_requests?: number;
}

export interface Policy extends Limits {
  models?: string[];
  priority?: string;
  weight?: number;
  monthly_budget?: { soft?: number; hard?: number };
  per_model?: Record<string, Limits>;
}

export interface Tenant {
  id: string;
  name: string;
  created_at: number;
  disabled_at: number | null;
  policy: Policy;
  revision: number;
}

export interface Key {
  id: string;
  tenant: string;
  name: string;
  role: Role;
  rights: string[];
  policy: Policy;
  state: string;
  created_at: number;
  expires_at: number | null;
  revoked_at: number | null;
  last_used_at: number | null;
  revision: number;
}

export interface KeyMade extends Key {
  key: string;
}

export interface Limit {
  what: string;
  of: "tenant" | "key";
  model: string | null;
  limit: number;
  used: number;
  resets_at: number | null;
}

export interface Tokens {
  requests: number;
  prompt_tokens: number;
  completion_tokens: number;
  cached_prompt_tokens: number;
  reasoning_tokens: number;
  price_micros: number;
}

export interface Me {
  key: Key | null;
  today: Tokens;
  month: Tokens;
  limits: Limit[];
}

export interface Sum {
  group: string;
  label: string | null;
  exact: Tokens;
  estimated: Tokens;
}

export interface Replica {
  id: string;
  cell: string;
  state: string;
  reason: string | null;
  progress: string | null;
  node: string;
  devices: string[];
  reported_s_ago: number;
  is_outlier: boolean;
  running_requests: number;
  waiting_requests: number;
  kv_cache_used_ratio: number;
}

export interface FleetModel {
  name: string;
  state: string;
  context_tokens: number;
  adapters: string[];
  aliases: string[];
  wanted: number | null;
  may_sleep: boolean;
  reason: string | null;
  shortage: string | null;
  waiting_requests: number;
  oldest_wait_s: number;
  queued: Record<string, number>;
  replicas: Replica[];
}

export interface Fleet {
  at: number;
  models: FleetModel[];
  warnings: string[];
  sources: { name: string; is_up: boolean }[];
  gateways: number;
}

export interface ModelActivity {
  name: string;
  requests: number[];
  failed: number[];
  completion_tokens: number[];
  ttft_p95_s: (number | null)[];
  judged: number[];
  kept: number[];
}

export interface Activity {
  /** Of how many of the processes that share the database these are the calls. */
  covers: number;
  gateways: number;
  slot_s: number;
  slots: number;
  ends_at: number;
  models: ModelActivity[];
}

export interface Batch {
  id: string;
  endpoint: string;
  status: string;
  created_at: number;
  completed_at?: number | null;
  failed_at?: number | null;
  expired_at?: number | null;
  cancelled_at?: number | null;
  request_counts?: { total: number; completed: number; failed: number } | null;
  errors?: { data?: { message: string; line?: number | null }[] } | null;
  metadata?: Record<string, string> | null;
}

export interface BatchList {
  data: Batch[];
  has_more: boolean;
  last_id?: string | null;
}

export interface AuditEvent {
  at: number;
  kind: string;
  writer: string;
  number: number;
  by: Record<string, unknown>;
  subject: string;
  tenant_id: string;
  details: Record<string, unknown>;
}
