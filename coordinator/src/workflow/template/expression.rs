//! One expression: a path, or CEL over paths.
//!
//! Compiling CEL replaces every path in it by a variable of its own (`@0`, `@1`, …) and puts the meter in. So what an expression
//! refers to is known before it runs, only that is converted, and a missing value is reported with its path.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};

use cel::{
    Env, IdedExpr,
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators},
};

use super::{
    meter,
    path::{DataPath, Key},
    stack,
};
use crate::workflow::report::shown;

/// Longest expression in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 2_000;
/// Levels of brackets, calls and loops within each other.
pub const EXPRESSION_DEPTH_MAX: u16 = 24;
/// Levels of the compiled expression; a chain of operators counts each.
const TREE_DEPTH_MAX: usize = 100;

/// Levels of a rewritten expression that are evaluated on the stack of the caller.
const TREE_DEPTH_INLINE_MAX: usize = 16;
/// Bytes, and levels of brackets and conditions, of an expression that is parsed on the stack of the caller.
const INLINE_BYTES_MAX: usize = 60;
const INLINE_DEPTH_MAX: usize = 3;

/// The words of CEL that stand for types, which an expression may compare with.
const TYPES: [&str; 11] =
    ["bool", "bytes", "double", "duration", "int", "list", "map", "null_type", "string", "type", "uint"];
/// The functions there are. Regular expressions are left out: their cost has no useful bound.
const FUNCTIONS: [&str; 33] = [
    "bool",
    "bytes",
    "double",
    "dyn",
    "duration",
    "int",
    "size",
    "string",
    "timestamp",
    "type",
    "uint",
    "contains",
    "endsWith",
    "startsWith",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "hasValue",
    "or",
    "orValue",
    "value",
    "none",
    "of",
    "ofNonZeroValue",
    "optMap",
    "optFlatMap",
];

/// The standard library and the meter. Shared by all expressions: it never changes.
pub(super) static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    meter::install(&mut env);
    Arc::new(env)
});

/// A compiled expression with its source text.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    pub(super) text: String,
    pub(super) body: Body,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Path(DataPath),
    /// The variable `@i` stands for the path `i`.
    Cel(Cel),
}

/// A compiled expression of CEL.
#[derive(Debug, Clone)]
pub(super) struct Cel {
    pub(super) tree: Box<IdedExpr>,
    pub(super) paths: Vec<DataPath>,
    /// Whether evaluating it may need more stack than a thread of the runtime has.
    pub(super) is_deep: bool,
}

impl Expression {
    /// Compiles what stands between `${{` and `}}`.
    ///
    /// # Errors
    /// Everything that is wrong with it; for faults of syntax the first.
    pub(super) fn compile(text: &str) -> Result<Self, Vec<String>> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(vec![format!("too long: {} bytes, allowed are {EXPRESSION_BYTES_MAX}", text.len())]);
        }
        let body = match DataPath::read(text) {
            Some(path) => Body::Path(path.map_err(|e| vec![e])?),
            None => stack::with_room(looks_deep(text), || compile_cel(text))?,
        };
        Ok(Self { text: text.to_owned(), body })
    }

    /// The places in the data that it refers to.
    pub(super) fn paths(&self) -> &[DataPath] {
        match &self.body {
            Body::Path(path) => std::slice::from_ref(path),
            Body::Cel(cel) => &cel.paths,
        }
    }
}

/// Whether parsing may need much stack: long chains and nested brackets do. Guessed from the text, never too low.
fn looks_deep(text: &str) -> bool {
    let (mut open, mut deepest) = (0usize, text.bytes().filter(|b| *b == b'?').count());
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(open);
    }
    text.len() > INLINE_BYTES_MAX || deepest > INLINE_DEPTH_MAX
}

fn compile_cel(text: &str) -> Result<Body, Vec<String>> {
    // The generated parser may panic on odd input; that is a fault of the text, not of this process.
    let parse = || ENV.parser().max_recursion_depth(EXPRESSION_DEPTH_MAX).error_recovery_limit(4).parse(text);
    let mut tree = match catch_unwind(AssertUnwindSafe(parse)) {
        Ok(Ok(tree)) => tree,
        Ok(Err(errors)) => {
            let first = errors.errors.first().map_or("it cannot be read", |e| e.msg.as_str());
            return Err(vec![format!("not an expression: {}", shown(first))]);
        }
        Err(_) => return Err(vec!["not an expression: it cannot be read".to_owned()]),
    };
    if depth(&tree) > TREE_DEPTH_MAX {
        return Err(vec![format!("too complex: allowed are {TREE_DEPTH_MAX} operators in a chain")]);
    }
    let mut rewriter = Rewriter::default();
    rewriter.rewrite(&mut tree);
    if let Some(path) = rewriter.only_path(&tree) {
        return if rewriter.faults.is_empty() { Ok(Body::Path(path)) } else { Err(rewriter.faults) };
    }
    if !rewriter.faults.is_empty() {
        return Err(rewriter.faults);
    }
    let is_deep = depth(&tree) > TREE_DEPTH_INLINE_MAX;
    Ok(Body::Cel(Cel { tree: Box::new(tree), paths: rewriter.paths, is_deep }))
}

/// Levels of the tree, counted without recursion because it may be too deep for that.
fn depth(tree: &IdedExpr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(tree, 1)];
    while let Some((node, level)) = open.pop() {
        deepest = deepest.max(level);
        let mut below = |node| open.push((node, level + 1));
        match &node.expr {
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
            Expr::Call(call) => call.target.iter().map(AsRef::as_ref).chain(&call.args).for_each(below),
            Expr::Comprehension(c) => {
                [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result].into_iter().for_each(below);
            }
            Expr::List(list) => list.elements.iter().for_each(below),
            Expr::Select(select) => below(&select.operand),
            Expr::Map(map) => map.entries.iter().for_each(|e| entry(&e.expr).into_iter().for_each(&mut below)),
            Expr::Struct(s) => s.entries.iter().for_each(|e| entry(&e.expr).into_iter().for_each(&mut below)),
        }
    }
    deepest
}

fn entry(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

#[derive(Default)]
struct Rewriter {
    paths: Vec<DataPath>,
    /// Variables of the loops around, which hide the data of the same name.
    loops: Vec<String>,
    faults: Vec<String>,
}

impl Rewriter {
    /// The path, if the whole expression was one.
    fn only_path(&self, tree: &IdedExpr) -> Option<DataPath> {
        match (&tree.expr, self.paths.as_slice()) {
            (Expr::Ident(name), [path]) if name == "@0" => Some(path.clone()),
            _ => None,
        }
    }

    fn rewrite(&mut self, node: &mut IdedExpr) {
        if let Some((first, keys)) = path_of(node)
            && !self.is_loop_variable(first)
        {
            let is_type = keys.is_empty() && TYPES.contains(&first);
            if !is_type {
                let path = DataPath::new(first, keys);
                self.replace(node, path);
            }
            return;
        }
        match &mut node.expr {
            Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => {}
            Expr::Select(select) => self.rewrite(&mut select.operand),
            Expr::List(list) => list.elements.iter_mut().for_each(|e| self.rewrite_kept(e)),
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                        self.rewrite(&mut entry.key);
                        self.rewrite_kept(&mut entry.value);
                    }
                }
            }
            Expr::Struct(_) => self.faults.push("typed messages are not known here: allowed are maps".to_owned()),
            Expr::Comprehension(c) => self.rewrite_loop(c),
            Expr::Call(call) => {
                self.rewrite_call(call);
                let operators = [operators::CONDITIONAL, operators::LOGICAL_AND, operators::LOGICAL_OR];
                if !operators.contains(&call.func_name.as_str()) && call.func_name != operators::NOT_STRICTLY_FALSE {
                    tick_before(node);
                }
            }
        }
    }

    fn is_loop_variable(&self, name: &str) -> bool {
        name.starts_with('@') || self.loops.iter().any(|variable| variable == name)
    }

    fn replace(&mut self, node: &mut IdedExpr, path: Result<DataPath, String>) {
        match path {
            Ok(path) => {
                let known = self.paths.iter().position(|p| *p == path);
                let i = known.unwrap_or_else(|| {
                    self.paths.push(path);
                    self.paths.len() - 1
                });
                node.expr = Expr::Ident(variable(i));
            }
            Err(fault) => {
                if !self.faults.contains(&fault) {
                    self.faults.push(fault);
                }
            }
        }
    }

    fn rewrite_kept(&mut self, node: &mut IdedExpr) {
        self.rewrite(node);
        if !matches!(node.expr, Expr::Literal(_)) {
            let kept = std::mem::take(node);
            *node = call(kept.id, meter::KEEP, vec![kept]);
        }
    }

    fn rewrite_call(&mut self, call: &mut CallExpr) {
        let is_operator = !call.func_name.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_operator && !FUNCTIONS.contains(&call.func_name.as_str()) {
            self.faults.push(format!("unknown function `{}`", shown(&call.func_name)));
        }
        // `optional.of(x)`: the target is the name of a library, not a value.
        let library = |target: &IdedExpr| matches!(&target.expr, Expr::Ident(name) if name == "optional");
        if let Some(target) = call.target.as_mut().filter(|t| !library(t)) {
            self.rewrite(target);
        }
        call.args.iter_mut().for_each(|argument| self.rewrite(argument));
        if call.func_name == operators::ADD {
            call.func_name = meter::ADD.to_owned();
        }
    }

    fn rewrite_loop(&mut self, c: &mut ComprehensionExpr) {
        self.rewrite(&mut c.iter_range);
        self.rewrite(&mut c.accu_init);
        let outside = self.loops.len();
        self.loops.push(c.iter_var.clone());
        self.loops.extend(c.iter_var2.clone());
        self.loops.push(c.accu_var.clone());
        // The crate recognises some shapes of loops: it appends in place for `accu + [x]` after a constant condition, and
        // lets errors be overruled for `accu || x`. The shapes are kept and the meter goes inside of them.
        if !matches!(c.loop_cond.expr, Expr::Literal(_)) {
            self.rewrite(&mut c.loop_cond);
            tick_before(&mut c.loop_cond);
        }
        self.rewrite_step(&mut c.loop_step, &c.accu_var);
        self.rewrite(&mut c.result);
        self.loops.truncate(outside);
    }

    fn rewrite_step(&mut self, step: &mut IdedExpr, accumulator: &str) {
        let is_accumulator = |e: &IdedExpr| matches!(&e.expr, Expr::Ident(name) if name == accumulator);
        if let Expr::Call(call) = &mut step.expr {
            match (call.func_name.as_str(), call.args.as_mut_slice()) {
                (operators::ADD, [left, right]) if is_accumulator(left) => {
                    if let Expr::List(items) = &mut right.expr {
                        for item in &mut items.elements {
                            self.rewrite_kept(item);
                            tick_before(item);
                        }
                        return;
                    }
                }
                (operators::LOGICAL_AND | operators::LOGICAL_OR, [left, right]) if is_accumulator(left) => {
                    self.rewrite(right);
                    tick_before(right);
                    return;
                }
                (operators::CONDITIONAL, [condition, then, otherwise]) if is_accumulator(otherwise) => {
                    self.rewrite(condition);
                    tick_before(condition);
                    self.rewrite_step(then, accumulator);
                    return;
                }
                _ => {}
            }
        }
        self.rewrite(step);
        tick_before(step);
    }
}

/// The variable that stands for a path.
pub(super) fn variable(i: usize) -> String {
    format!("@{i}")
}

fn call(id: u64, name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    IdedExpr { id, expr: Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args }) }
}

/// `@tick() ? node : null`: no matter how often the node runs, the meter is asked before.
fn tick_before(node: &mut IdedExpr) {
    let inner = std::mem::take(node);
    let id = inner.id;
    let null = IdedExpr { id, expr: Expr::Literal(LiteralValue::Null) };
    *node = call(id, operators::CONDITIONAL, vec![call(id, meter::TICK, Vec::new()), inner, null]);
}

/// The first name and the keys, if the node is a chain of fields and constant items on a name.
fn path_of(node: &IdedExpr) -> Option<(&str, Vec<Key>)> {
    let mut keys = Vec::new();
    let mut node = node;
    loop {
        match &node.expr {
            Expr::Ident(name) => {
                keys.reverse();
                return Some((name, keys));
            }
            Expr::Select(select) if !select.test => {
                keys.push(Key::Field(select.field.clone()));
                node = &select.operand;
            }
            Expr::Call(call) if call.func_name == operators::INDEX && call.target.is_none() => {
                let [operand, key] = call.args.as_slice() else { return None };
                keys.push(match &key.expr {
                    Expr::Literal(LiteralValue::String(text)) => Key::Field(text.inner().to_owned()),
                    Expr::Literal(LiteralValue::Int(i)) => Key::Item(usize::try_from(*i.inner()).ok()?),
                    _ => return None,
                });
                node = operand;
            }
            _ => return None,
        }
    }
}
