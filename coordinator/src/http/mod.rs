//! The API by resource, with its OpenAPI description.
//!
//! | route | does |
//! |---|---|
//! | `POST /api/v1/runs` | submits a run: [`view::SubmitRequest`] -> 201, 200 (known) or 202 [`view::Submitted`]; `Idempotency-Key` |
//! | `POST /api/v1/runs/bulk` | NDJSON of [`view::SubmitRequest`] -> NDJSON of [`view::BulkAnswer`], one a line, in order |
//! | `GET /api/v1/runs?state=&workflow=&limit=&cursor=` | [`view::Page`] of [`view::RunSummary`], newest first |
//! | `GET /api/v1/runs/{id}` | [`view::RunView`] |
//! | `GET /api/v1/runs/{id}/steps?limit=&cursor=` | page of [`view::StepView`] |
//! | `GET /api/v1/runs/{id}/history?limit=&cursor=` | page of [`view::HistoryView`], oldest first |
//! | `GET /api/v1/runs/{id}/input`, `GET /api/v1/runs/{id}/output?step=` | the value itself as JSON; without `step` an object of the outputs of the last steps |
//! | `POST /api/v1/runs/{id}/cancel`, `/resume`, `/retry` | [`view::CommandRequest`] (optional) -> 200 or 202 [`view::CommandTaken`], 409 |
//! | `POST /api/v1/runs/{id}/suspend` | [`view::SuspendRequest`] (optional) -> the same |
//! | `POST /api/v1/workflows` | YAML or JSON text -> 201 or 200 [`view::Registered`], 422 with every problem |
//! | `POST /api/v1/workflows/check` | YAML or JSON text -> 200 [`view::Checked`] |
//! | `GET /api/v1/workflows?limit=&cursor=` | page of [`view::WorkflowSummary`] by name |
//! | `GET /api/v1/workflows/{name}?version=` | [`view::WorkflowDetail`] |
//! | `GET /api/v1/workflows/schema` | the JSON Schema of definitions |
//! | `GET /api/v1/dead-letters?workflow=&handler=&queue=&category=&limit=&cursor=` | page of [`view::LetterView`], newest first |
//! | `GET /api/v1/dead-letters/{id}` | [`view::LetterView`] with attempts and input |
//! | `POST /api/v1/dead-letters/{id}/replay` | [`view::ReplayRequest`] (optional) -> [`view::Replayed`] |
//! | `POST /api/v1/dead-letters/replay` | [`view::ReplayAll`] -> [`view::Replayed`] |
//! | `GET /api/v1/workers` | page of [`view::WorkerView`] |
//! | `GET /api/v1/workers/health` | [`view::FleetHealth`]; 200 whatever the level |
//! | `GET /api/v1/workers/stats` | [`view::FleetStats`] |
//! | `GET /api/v1/workers/{id}` | [`view::WorkerView`] |
//! | `POST /api/v1/workers/{id}/drain` | 202 [`view::Draining`] |
//! | `GET /api/v1/queues` | page of [`view::QueueView`] |
//! | `GET /api/v1/partitions`, `POST` [`view::AddPartitions`] | page of [`view::PartitionView`] |
//! | `GET /api/v1/quarantine?cursor=`, `GET` and `DELETE /api/v1/quarantine/{id}` | page of, one [`view::QuarantineView`]; [`view::Discarded`] |
//! | `GET /api/v1/metrics/runs?time_range=24h` | [`view::RunMetrics`] |
//! | `GET /api/v1/openapi.json`, `/livez`, `/readyz`, `/metrics` | |
//! | `/api/v1/workflow/{id}/status`, … , `/workers/health`, `/workers/stats` | other names of the above |
//!
//! Errors are [`view::Problem`].

pub mod view;
