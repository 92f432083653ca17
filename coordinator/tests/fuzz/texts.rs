//! Samples that people write: definitions, policies, templates, bodies, ids.

/// Workflows, with all that a definition may say.
pub(crate) const WORKFLOWS: &[(&str, &str)] = &[
    (
        "everything",
        "workflow: orders
description: all of it
timeout: 10m
on_failure: compensate
input: { type: object, required: [n], properties: { n: { type: integer } } }
defaults: { queue: cpu, timeout: 30s }
steps:
  a: { handler: http, with: { url: \"https://x/${{ input.n }}\", headers: [a, b] }, compensate: { handler: undo } }
  b:
    handler: exec
    needs: [a]
    priority: 7
    start_within: 20s
    retry: { max_attempts: 5, backoff: { base: 1s, cap: 1m, jitter: none } }
    with: { command: [sh, -c, 'echo ${{ steps.a.output.status }}'] }
  c: { handler: noop, needs: [a, b], on_failure: skip_dependents, fallback: { handler: spare } }
",
    ),
    (
        "json",
        r#"{"workflow": "j", "steps": {"a": {"handler": "noop"}, "b": {"handler": "sleep", "needs": ["a"], "with": {"duration": "1s"}}}}"#,
    ),
];

/// Policies of a fleet.
pub(crate) const POLICIES: &[(&str, &str)] = &[
    (
        "everything",
        "preset: production
classification: category
retry:
  max_attempts: 4
  backoff: { base: 2s, factor: 2, cap: 1m, jitter: full }
  categories: { rate_limited: { max_attempts: 10, backoff: { base: 30s } }, permanent: { notify: false } }
breaker: { failures: 5, ratio: 0.5, minimum_calls: 10, window: 1m, break_for: 1m, break_cap: 10m, canaries: 3 }
handlers:
  charge: { retry: { categories: { timeout: { retry: false } } }, breaker: { failures: 3 } }
targets: { 'api.example.org': { failures: 20, window: 5m } }
limits: { 'handler:charge': { concurrency: 20 }, 'target:api.example.org': { rate: 100/s, burst: 20 } }
",
    ),
    ("json", r#"{"retry": {"max_attempts": 2}}"#),
];

/// `with` of steps, and bare texts.
pub(crate) const TEMPLATES: &[&str] = &[
    "${{ input }}",
    "${{ steps.a.output.ok && input.n > 2 }}",
    "a ${{ input.text }} b $${{ c ${{ run.id }}/${{ attempt }}",
    "${{ input.list.map(x, x).filter(x, type(x) == int) }}",
    "${{ input.list.exists(i, i == '2') ? size(input.list) : input.missing }}",
    "${{ {'b': input.n, 'a': {'c': [1] + steps.b.output}} }}",
    "${{ string(timestamp(run.created_at) + duration('1h')) }}",
    "${{ input.?zzz.orValue('d') + input.text + (input.text.startsWith('ü') ? 'y' : 'n') }}",
    "${{ steps[\"a\"].output['ok'] || has(input.deep.a) }}",
    "${{ 9223372036854775807 + input.n }}",
    r#"{"k": ["${{ input.f * 2.0 }}", 1, null], "${{ no }}": {"s": "${{ input.deep }}"}}"#,
];

/// Bodies of the API.
pub(crate) const BODIES: &[&str] = &[
    r#"{"workflow": "orders@2", "input": {"n": 1}, "durable": true, "idempotency_key": "k"}"#,
    r#"{"definition": {"workflow": "w", "steps": {"a": {"handler": "noop"}}}, "input": null}"#,
    r#"{"definition_text": "workflow: w\nsteps: {a: {handler: noop}}"}"#,
    r#"{"reason": "a duplicate"}"#,
    r#"{"reason": "again", "from": "b"}"#,
    r#"{"step": "a", "complete": null, "reason": "by hand"}"#,
    r#"{"step": "a", "fail": "no"}"#,
    r#"{"now": true}"#,
    r#"{"input": {"x": [1, 2.5, "ü"]}, "reason": "fixed"}"#,
    r#"{"patch": {"currency": "EUR", "old": null}}"#,
    r#"{"kind": "replay", "filter": {"category": "transient", "ids": "0-1-1,0-2-1", "older_than_ms": 5}, "canary": 5, "rate": 10, "when_version": ">=1.4"}"#,
    r#"{"reason": "for lunch", "for": "10m"}"#,
    r#"{"count": 8}"#,
    r#"{"workflow": "orders", "text": "refused", "fingerprint": "0123456789abcdef"}"#,
];

/// Ids and names in their texts.
pub(crate) const IDS: &[&str] = &[
    "0190a5e4-0000-7000-8000-000000000001",
    "7-0123456789abcdef.42.3",
    "7-0123456789abcdef",
    "1800000000000-7",
    "w-1@0123456789ab",
    "3.1.2.9",
    "12-1800000000000-4",
    "handler:charge",
    "target:https://api:443",
    "orders",
];
