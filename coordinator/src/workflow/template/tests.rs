//! Templates: what they mean, that the short cut for paths agrees with CEL, and that nothing makes them hang or panic.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;
use stepfleet_protocol::limits::PAYLOAD_BYTES_MAX;

use super::*;

fn scope(input: Value, outputs: Value) -> Scope {
    let Value::Object(outputs) = outputs else { panic!("outputs by name") };
    Scope {
        input: Arc::new(input),
        outputs: outputs
            .into_iter()
            .map(|(name, value)| (Name::new(&name).expect("a legal name"), Arc::new(value)))
            .collect(),
        run: RunScope { id: "r-1".into(), workflow: "orders".into(), created_at: "2026-01-02T03:04:05Z".into() },
        attempt: 2,
    }
}

fn sample() -> Scope {
    let input = json!({
        "url": "http://x", "n": 3, "f": 1.5, "whole": 2.0, "none": null, "yes": true, "big": u64::MAX, "low": i64::MIN,
        "a": { "b": [10, { "c": "ü😀" }], "x y": 1, "for": 4 }, "items": [{ "id": 1 }, { "id": 2 }],
    });
    scope(input, json!({ "fetch": { "body": [1, 2], "ok": true }, "a-b": "dash", "x": 7 }))
}

fn render(with: Value, scope: &Scope) -> Result<Value, String> {
    let template =
        Template::parse(&with).map_err(|p| p.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    template.render(scope).map_err(|e| e.to_string())
}

#[test]
fn a_whole_value_keeps_its_type_and_inside_text_it_is_printed() {
    for (with, expected) in [
        (json!("${{ input.n }}"), json!(3)),
        (json!("${{input.n}}"), json!(3)),
        (json!("${{ input.n + 1 }}"), json!(4)),
        (json!("${{ input.big }}"), json!(u64::MAX)),
        (json!("${{ [input.big, input.low][0] }}"), json!(u64::MAX)),
        (json!("${{ [input.big, input.low][1] }}"), json!(i64::MIN)),
        (json!("${{ input.f * 2.0 }}"), json!(3.0)),
        (json!("${{ input.whole }}"), json!(2.0)),
        (json!("${{ input.none }}"), json!(null)),
        (json!("${{ input.a.b[1].c }}"), json!("ü😀")),
        (json!("${{ input.a[\"x y\"] }}"), json!(1)),
        (json!("${{ steps.fetch.output }}"), json!({ "body": [1, 2], "ok": true })),
        (json!("${{ steps[\"a-b\"].output }}"), json!("dash")),
        (json!("${{ steps['a-b'].output + '!' }}"), json!("dash!")),
        (json!("${{ run }}"), json!({ "id": "r-1", "workflow": "orders", "created_at": "2026-01-02T03:04:05Z" })),
        (json!("${{ run.id }}/${{ attempt }}"), json!("r-1/2")),
        (json!("${{ attempt > 1 ? 'again' : 'first' }}"), json!("again")),
        (
            json!("n=${{ input.n }} f=${{ input.f }} t=${{ input.yes }} z=${{ input.none }}."),
            json!("n=3 f=1.5 t=true z=."),
        ),
        (json!("${{ input.items }} ${{ steps.fetch.output.body }}"), json!("[{\"id\":1},{\"id\":2}] [1,2]")),
        (json!("$${{ input.n }}"), json!("${{ input.n }}")),
        (json!("a $${{ b ${{ input.n }}"), json!("a ${{ b 3")),
        (
            json!({ "k": ["${{ input.n }}", 1], "${{ k }}": { "s": "x" } }),
            json!({ "k": [3, 1], "${{ k }}": { "s": "x" } }),
        ),
        (json!("${{ input.items.map(i, i.id * input.n) }}"), json!([3, 6])),
        (json!("${{ input.items.filter(input, input.id > 1) }}"), json!([{ "id": 2 }])),
        (json!("${{ input.items.exists(i, i.id == 2) && input.items.all(i, i.id > 0) }}"), json!(true)),
        (json!("${{ has(input.a.b) && !has(input.a.z) }}"), json!(true)),
        (json!("${{ input.?zzz.orValue('d') }}"), json!("d")),
        (json!("${{ {'b': input.n, 'a': {'c': [1]}} }}"), json!({ "a": { "c": [1] }, "b": 3 })),
        (json!("${{ size(input.items) + steps.x.output }}"), json!(9)),
        (json!("${{ type(input.n) == int && 'c' in input.a.b[1] }}"), json!(true)),
        (json!("${{ string(timestamp(run.created_at) + duration('1h')) }}"), json!("2026-01-02T04:04:05Z")),
        (json!("${{ input.missing == 1 || true }}"), json!(true)),
        (json!("${{ input.n == 3 ? 'x' : input.missing }}"), json!("x")),
        (json!("${{ [1] + [input.n] + [4] }}"), json!([1, 3, 4])),
    ] {
        assert_eq!(render(with.clone(), &sample()), Ok(expected), "{with}");
    }
}

#[test]
fn faults_name_the_place_and_the_path() {
    for (with, expected) in [
        (json!({ "a": ["${{ input.zzz }}"] }), "with.a[0]: `${{ input.zzz }}`: `input` has no field `zzz`"),
        (json!("${{ input.a.b[7] }}"), "with: `${{ input.a.b[7] }}`: `input.a.b` has no item 7"),
        (json!("${{ input.n.x }}"), "with: `${{ input.n.x }}`: `input.n` is a number, which has no field `x`"),
        (json!("${{ input.a[0] }}"), "with: `${{ input.a[0] }}`: `input.a` is a map, not a list"),
        (json!("${{ input.zzz.y + 1 }}"), "with: `${{ input.zzz.y + 1 }}`: `input` has no field `zzz`"),
        (json!("${{ steps.gone.output.x }}"), "with: `${{ steps.gone.output.x }}`: step `gone` has no output"),
        (json!("${{ 1 + 'a' }}"), "with: `${{ 1 + 'a' }}`: Unsupported binary operator 'add': Int(1), String(\"a\")"),
        (
            json!("${{ b'x' }}"),
            "with: `${{ b'x' }}`: the result is of type `Bytes`: allowed is what JSON can hold; hint: `string(…)`",
        ),
        (json!("${{ 1.0 / 0.0 }}"), "with: `${{ 1.0 / 0.0 }}`: the result is not a number that JSON can hold"),
        (
            json!("${{ inptu.x }}"),
            "with: in `inptu.x`: unknown name `inptu`: allowed is `input`, `steps`, `run`, `attempt`; hint: did you mean `input`?",
        ),
        (
            json!("${{ input.map(i, j) }}"),
            "with: in `input.map(i, j)`: unknown name `j`: allowed is `input`, `steps`, `run`, `attempt`",
        ),
        (
            json!("${{ run.name }}"),
            "with: in `run.name`: unknown `run.name`: allowed is `run.id`, `run.workflow`, `run.created_at`",
        ),
        (
            json!("${{ steps.x }}"),
            "with: in `steps.x`: `steps` not followed by a step and `output`: allowed is `steps.fetch.output`, or `steps[\"a-b\"].output` for a name with `-` or `.`",
        ),
        (json!("${{ matches(input.url, 'x') }}"), "with: in `matches(input.url, 'x')`: unknown function `matches`"),
        (json!("${{ input.url"), "with: unclosed `${{`: a `}}` must follow; `$${{` stands for the text `${{`"),
        (json!("${{ }}"), "with: empty expression `${{ }}`"),
    ] {
        assert_eq!(render(with.clone(), &sample()), Err(expected.to_owned()), "{with}");
    }
    for bad in ["1 +", "input..a", "(", "steps[input.n].output", "a.b.c{x: 1}", "'", "\u{0}", "input[", "🦀"] {
        assert!(Template::parse(&json!(format!("${{{{ {bad} }}}}"))).is_err(), "{bad}");
    }
}

#[test]
fn sources_and_whole_values_are_known_before_rendering() {
    let out = |name: &str| Source::Output(Name::new(name).expect("a legal name"));
    let template = |with: Value| Template::parse(&with).expect("a legal template");
    let t =
        template(json!({ "a": "${{ input.x + steps.b.output }}", "c": "${{ steps['d-e'].output.f }} ${{ run.id }}" }));
    assert_eq!(t.sources().iter().cloned().collect::<Vec<_>>(), [Source::Input, out("b"), out("d-e")]);
    assert!(t.whole().is_none() && !t.is_static());
    assert_eq!(template(json!("${{ input }}")).whole(), Some(&Source::Input));
    assert_eq!(template(json!("${{ steps.a.output }}")).whole(), Some(&out("a")));
    for not_whole in [json!("${{ input.a }}"), json!(" ${{ input }}"), json!(["${{ input }}"]), json!("${{ run }}")] {
        assert_eq!(template(not_whole).whole(), None);
    }
    assert!(template(json!({ "a": ["$${{ x }}", 1] })).is_static());
}

/// The same expression by the crate alone, over everything, without short cut, rewriting or meter.
fn plain_cel(expression: &str, scope: &Scope) -> Option<Value> {
    let mut context = cel::Context::default();
    let steps: BTreeMap<&str, Value> =
        scope.outputs.iter().map(|(n, v)| (n.as_str(), json!({ "output": **v }))).collect();
    for (name, value) in [("input", (*scope.input).clone()), ("steps", json!(steps))] {
        context.add_variable_from_value(name, signed(&value));
    }
    let value = cel::Env::stdlib().compile(expression).ok()?.execute(&context).ok()?;
    serde_json::to_value(Plain(value)).ok()
}

struct Plain(cel::Value);

impl serde::Serialize for Plain {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            cel::Value::Null => s.serialize_unit(),
            cel::Value::Bool(b) => s.serialize_bool(*b),
            cel::Value::Int(i) => s.serialize_i64(*i),
            cel::Value::UInt(i) => s.serialize_u64(*i),
            cel::Value::Float(f) => s.serialize_f64(*f),
            cel::Value::String(t) => s.serialize_str(t),
            cel::Value::List(items) => s.collect_seq(items.iter().cloned().map(Plain)),
            cel::Value::Map(map) => s.collect_map(map.map.iter().map(|(k, v)| (k.to_string(), Plain(v.clone())))),
            other => Err(serde::ser::Error::custom(format!("{other:?}"))),
        }
    }
}

/// CEL's value of JSON with whole numbers as `int`.
fn signed(value: &Value) -> cel::Value {
    match value {
        Value::Array(items) => items.iter().map(signed).collect::<Vec<_>>().into(),
        Value::Object(map) => {
            map.iter().map(|(k, v)| (k.clone(), signed(v))).collect::<std::collections::HashMap<_, _>>().into()
        }
        Value::Number(n) if n.is_i64() => cel::Value::Int(n.as_i64().expect("checked")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            cel::to_value(value).expect("JSON is a value of CEL")
        }
    }
}

#[test]
fn short_cut_rewriting_and_meter_change_no_result() {
    let scope = sample();
    for expression in [
        "input",
        "input.n",
        "input.big",
        "input.low",
        "input.f",
        "input.whole",
        "input.none",
        "input.a.b",
        "input.a.b[0]",
        "input.a.b[1].c",
        "input.a['x y']",
        "input.a[\"b\"][1]",
        "input.a.b[2]",
        "input.a.b[-1]",
        "input.zzz",
        "input.n.x",
        "input.a[0]",
        "input.items.id",
        "input.url.x",
        "input.none.x",
        "steps.fetch.output",
        "steps.fetch.output.body[1]",
        "steps['a-b'].output",
        "steps.gone.output",
        "input.a.for",
        "input.a.in",
        "input.a.b[01]",
        "input.a . b",
        "input.a.b[ 0 ]",
        "input.items.map(x, x.id)",
        "input.items.map(x, x.id > 1, x)",
        "input.items.filter(x, x.id == 1)",
        "input.items.exists_one(x, x.id == 1)",
        "input.items.map(x, input.items.map(y, x.id + y.id))",
        "input.items.map(x, [x.id] + [1])",
        "size(input.a.map(k, k))",
        "[1, 2] + [3]",
        "'a' + 'b'",
        "b'a' == b'a'",
        "1 / 0",
        "1 + 2u",
        "has(input.a.b)",
        "has(input.zzz)",
        "has(input.zzz.y)",
        "has(input.n.x)",
        "input.zzz || true",
        "false && input.zzz",
        "true ? 1 : input.zzz",
        "{'a': input.n}",
        "[input.zzz]",
        "optional.of(1).value()",
        "input[?'zzz'].hasValue()",
        "input.?a.?b.orValue([])",
        "[1, 2].map(input, input + 1)",
        "optional.none().optMap(x, x)",
        "input.n in [1, 3]",
        "dyn(input.n) == 3.0",
        "size(input.a.b)",
        "input.url.startsWith('http')",
        "-input.n",
        "!input.yes",
        "input.n % 2",
        "input.items.all(x, x.zzz == 1)",
        "input.items.exists(x, x.zzz == 1 || x.id == 2)",
    ] {
        let ours = Template::parse(&json!(format!("${{{{ {expression} }}}}"))).ok().and_then(|t| t.render(&scope).ok());
        assert_eq!(ours, plain_cel(expression, &scope), "{expression}");
    }
}

#[test]
fn a_runaway_expression_is_cut() {
    let digits = (0..100).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let nested =
        |body: &str| format!("[{digits}].map(a, [{digits}].map(b, [{digits}].map(c, [{digits}].map(d, {body}))))");
    let doubling = (0..20).rev().fold("v19".to_owned(), |inner, i| {
        let before = if i == 0 { "input.text".to_owned() } else { format!("v{}", i - 1) };
        format!("[{before} + {before}].map(v{i}, {inner})")
    });
    let scope = scope(json!({ "text": "x".repeat(100_000), "list": vec![1; 20_000] }), json!({}));
    for expression in [
        nested("1"),
        nested("a + b + c + d"),
        format!("[{digits}].all(a, input.list.all(b, input.list.all(c, input.list.exists(d, d == 2) || true)))"),
        "input.list.exists(a, input.list.exists(b, input.list.exists(c, a + b + c == 9))) || true".to_owned(),
        "input.list.filter(a, input.list.filter(b, b == 3).size() == 0).size() == 0".to_owned(),
        "input.list.map(a, input.list)".to_owned(),
        "input.list.map(a, input.text)".to_owned(),
        "input.list.map(a, {'k': input.text})".to_owned(),
        "input.list.exists_one(a, input.list.exists_one(b, a == b))".to_owned(),
        vec!["input.text"; 160]
            .join(" + ")
            .chars()
            .take(1_998)
            .collect::<String>()
            .trim_end_matches([' ', '+', '.'])
            .to_owned(),
        doubling,
    ] {
        let started = Instant::now();
        let result = render(json!(format!("${{{{ {expression} }}}}")), &scope);
        assert!(result.is_err(), "{expression}");
        // The limit is 50 ms; the rest is for a debug build on a busy machine.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?} {expression}", started.elapsed());
    }
}

#[test]
fn deep_and_long_expressions_are_refused_or_fit_the_stack_of_a_thread() {
    let wrap = |open: &str, inner: &str, close: &str, n: usize| format!("{}{inner}{}", open.repeat(n), close.repeat(n));
    let expressions = [
        wrap("[", "1", "]", 900),
        wrap("(", "1", ")", 900),
        wrap("!", "true", "", 900),
        wrap("-", "1", "", 900),
        wrap("{1:", "1", "}", 300),
        wrap("size(", "1", ")", 300),
        wrap("1+", "1", "", 29),
        wrap("[[1]+", "[1]", "]", 2),
        wrap("true ? ", "1", " : 2", 200),
        wrap("[", "1", "]", 20),
        wrap("[1].map(x, ", "x", ")", 20),
        format!("input{}", ".a".repeat(900)),
        format!("input{}", ".a()".repeat(400)),
        format!("1{}", "+1".repeat(900)),
        format!("1{}", "+1".repeat(90)),
        format!("true{}", "&&true".repeat(300)),
        format!("[{}]", "1,".repeat(900)),
        "x".repeat(3_000),
    ];
    let run = move || {
        for expression in expressions {
            let _ = render(json!(format!("${{{{ {expression} }}}}")), &sample());
        }
    };
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(run)
        .expect("a thread")
        .join()
        .expect("no overflow and no panic");
}

#[test]
fn the_result_is_bounded_and_so_is_a_message() {
    let scope = scope(
        json!({ "big": "x".repeat(PAYLOAD_BYTES_MAX - 10), "quotes": "\"".repeat(PAYLOAD_BYTES_MAX / 2) }),
        json!({}),
    );
    assert!(render(json!("${{ input.big }}"), &scope).is_ok());
    for with in
        [json!(vec!["${{ input.big }}"; 500]), json!("${{ input.big }}${{ input.big }}"), json!("${{ input.quotes }}")]
    {
        let error = render(with, &scope).expect_err("too large");
        assert!(error.ends_with("the result is too large: allowed are 1048576 bytes"), "{error}");
    }
    let error = render(json!("${{ input + 1 }}"), &scope).expect_err("a map and a number");
    assert!(error.len() < 500, "{error}");
    assert!(Template::parse(&json!(vec!["${{ input.a }}"; EXPRESSIONS_MAX + 1])).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-c]|.{0,4}", inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Texts that are often nearly an expression.
fn nearly_cel() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "input", "steps", ".", "a", "output", "[", "]", "(", ")", "0", "1", "\"a\"", "'", "+", "-", "?", ":", "&&",
        "||", "==", "map", "filter", "has", ",", " ", "{", "}", "}}", "${{", "$${{", "x", "!", "in", "null", "r\"",
        "\\", "//", "🦀", "1.5", "u",
    ]);
    prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_text_and_no_data_make_it_panic(inside in nearly_cel(), text in ".{0,200}", data in any_json()) {
        let scope = scope(data.clone(), json!({ "a": data }));
        for text in [format!("${{{{ {inside} }}}}"), format!("${{{{ {text} }}}}"), inside, text] {
            if let Ok(template) = Template::parse(&json!([text]))
                && let Err(error) = template.render(&scope)
            {
                prop_assert!(error.to_string().len() < 2_000);
            }
        }
    }

    #[test]
    fn values_survive_both_ways(data in any_json()) {
        let scope = scope(json!({ "v": data }), json!({}));
        prop_assert_eq!(render(json!("${{ input.v }}"), &scope), Ok(data.clone()));
        prop_assert_eq!(render(json!("${{ [input.v][0] }}"), &scope), Ok(data));
    }
}
