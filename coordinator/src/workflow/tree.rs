//! The definition as a tree whose nodes know their place, from YAML, JSON or a value that is already parsed.
//!
//! YAML 1.2 core schema: `yes` and `on` are text, `012` is twelve. No tags but `!!str`, one document. Anchors and aliases work
//! as long as what they repeat stays small, so that a few lines cannot unfold to gigabytes. Not here: what any key means.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};
use serde_json::{Number, Value};
use stepfleet_protocol::limits::WORKFLOW_BYTES_MAX;

use super::report::Complaint;

/// Levels of lists and maps within each other.
pub const DEPTH_MAX: usize = 64;
/// Lists, maps, keys and values of one definition.
pub const NODES_MAX: usize = 5_000_000;
/// What anchors and aliases may repeat, in bytes of text, each node counting 16 more.
pub const ALIAS_BYTES_MAX: usize = 1 << 20;

/// A place in the text: both from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pos {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A value and its place, if it has one.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) at: Option<Pos>,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a map with its value. Duplicates are kept: it is for the reader of the map to complain.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Option<Pos>,
    pub(super) value: Node,
}

/// Why there is no tree: one problem, because what follows it cannot be understood.
pub(super) type Broken = (Option<Pos>, Complaint);

/// Reads YAML or JSON.
///
/// # Errors
/// The first fault of syntax, or the bound that is broken, with its place.
pub(super) fn parse(text: &str) -> Result<Node, Broken> {
    if text.len() > WORKFLOW_BYTES_MAX {
        let found = format!("too large: {} bytes", text.len());
        return Err((None, Complaint::new(found).allowed(format!("at most {WORKFLOW_BYTES_MAX}"))));
    }
    let text = join_surrogates(text);
    let mut builder = Builder::default();
    for event in Parser::new_from_str(&text) {
        let (event, span) = event.map_err(|e| {
            (Some(pos(*e.marker())), Complaint::new(format!("bad syntax: {}", e.info().trim_end_matches('.'))))
        })?;
        builder.take(event, span)?;
    }
    let empty = || (Some(Pos { line: 1, column: 1 }), Complaint::new("nothing found").allowed("a workflow"));
    builder.root.ok_or_else(empty)
}

impl Node {
    /// From a value without places.
    ///
    /// # Errors
    /// The bound that is broken.
    pub(super) fn from_value(value: &Value) -> Result<Self, Broken> {
        let mut nodes = 0;
        node_of(value, 0, &mut nodes)
    }

    /// What it is, as a report calls it.
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::Null => "nothing".to_owned(),
            Kind::Bool(b) => format!("`{b}`"),
            Kind::Number(n) => format!("number `{n}`"),
            Kind::Text(t) => format!("text `{}`", super::report::shown(t)),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a map".to_owned(),
        }
    }

    fn weight(&self) -> usize {
        16 + match &self.kind {
            Kind::Null | Kind::Bool(_) | Kind::Number(_) => 0,
            Kind::Text(t) => t.len(),
            Kind::List(items) => items.iter().map(Node::weight).sum(),
            Kind::Map(entries) => entries.iter().map(|e| e.key.len() + e.value.weight()).sum(),
        }
    }
}

fn node_of(value: &Value, depth: usize, nodes: &mut usize) -> Result<Node, Broken> {
    *nodes += 1;
    check_bounds(None, depth, *nodes)?;
    let kind = match value {
        Value::Null => Kind::Null,
        Value::Bool(b) => Kind::Bool(*b),
        Value::Number(n) => Kind::Number(n.clone()),
        Value::String(t) => Kind::Text(t.clone()),
        Value::Array(items) => {
            Kind::List(items.iter().map(|v| node_of(v, depth + 1, nodes)).collect::<Result<_, _>>()?)
        }
        Value::Object(map) => {
            let mut entries = Vec::with_capacity(map.len());
            for (key, value) in map {
                entries.push(Entry { key: key.clone(), at: None, value: node_of(value, depth + 1, nodes)? });
            }
            Kind::Map(entries)
        }
    };
    Ok(Node { at: None, kind })
}

fn check_bounds(at: Option<Pos>, depth: usize, nodes: usize) -> Result<(), Broken> {
    if depth > DEPTH_MAX {
        return Err((at, Complaint::new("nested too deeply").allowed(format!("at most {DEPTH_MAX} levels"))));
    }
    if nodes > NODES_MAX {
        return Err((at, Complaint::new("too many values").allowed(format!("at most {NODES_MAX}"))));
    }
    Ok(())
}

fn pos(marker: Marker) -> Pos {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Pos { line: small(marker.line()), column: small(marker.col()).saturating_add(1) }
}

/// A list or map that is still open.
struct Frame {
    node: Node,
    anchor: usize,
    /// The key whose value comes next, in a map.
    key: Option<(String, Pos)>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    repeated_bytes: usize,
    root: Option<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Broken> {
        let at = pos(span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => {
                Err((Some(at), Complaint::new("a second document").allowed("one workflow in one document")))
            }
            Event::DocumentStart(_) => Ok(()),
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(tag.as_deref(), at)?;
                let plain = style == ScalarStyle::Plain && tag.is_none();
                if let Some(frame) = self.awaits_key() {
                    frame.key = Some((text.into_owned(), at));
                    return self.count(at);
                }
                let kind = if plain { resolve(&text) } else { Kind::Text(text.into_owned()) };
                self.put(Node { at: Some(at), kind }, anchor, at)
            }
            Event::SequenceStart(anchor, tag) => self.begin(Kind::List(Vec::new()), anchor, tag.as_deref(), at),
            Event::MappingStart(anchor, tag) => self.begin(Kind::Map(Vec::new()), anchor, tag.as_deref(), at),
            Event::SequenceEnd | Event::MappingEnd => {
                let frame = self.open.pop().expect("the parser closes only what it opened");
                self.put(frame.node, frame.anchor, at)
            }
            Event::Alias(anchor) => self.alias(anchor, at),
        }
    }

    /// The open map that waits for a key rather than a value.
    fn awaits_key(&mut self) -> Option<&mut Frame> {
        self.open.last_mut().filter(|f| matches!(f.node.kind, Kind::Map(_)) && f.key.is_none())
    }

    fn count(&mut self, at: Pos) -> Result<(), Broken> {
        self.nodes += 1;
        check_bounds(Some(at), self.open.len(), self.nodes)
    }

    fn begin(&mut self, kind: Kind, anchor: usize, tag: Option<&Tag>, at: Pos) -> Result<(), Broken> {
        check_tag(tag, at)?;
        if self.awaits_key().is_some() {
            return Err((Some(at), Complaint::new("a list or map as a key").allowed("text")));
        }
        self.open.push(Frame { node: Node { at: Some(at), kind }, anchor, key: None });
        self.count(at)
    }

    fn put(&mut self, node: Node, anchor: usize, at: Pos) -> Result<(), Broken> {
        self.count(at)?;
        if anchor > 0 {
            self.repeat(&node, at)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(frame) => match &mut frame.node.kind {
                Kind::List(items) => items.push(node),
                Kind::Map(entries) => {
                    let (key, at) = frame.key.take().expect("a value of a map follows its key");
                    entries.push(Entry { key, at: Some(at), value: node });
                }
                Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => {
                    unreachable!("only lists and maps are opened")
                }
            },
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, at: Pos) -> Result<(), Broken> {
        let recursive = || (Some(at), Complaint::new("an alias inside the value that it names"));
        let mut node = self.anchors.get(&anchor).cloned().ok_or_else(recursive)?;
        self.repeat(&node, at)?;
        node.at = Some(at);
        if let Some(frame) = self.awaits_key() {
            let Kind::Text(text) = node.kind else {
                return Err((Some(at), Complaint::new("an alias as a key").allowed("text")));
            };
            frame.key = Some((text, at));
            return Ok(());
        }
        check_bounds(Some(at), self.open.len() + depth(&node), self.nodes)?;
        self.put(node, 0, at)
    }

    fn repeat(&mut self, node: &Node, at: Pos) -> Result<(), Broken> {
        self.repeated_bytes += node.weight();
        if self.repeated_bytes > ALIAS_BYTES_MAX {
            let found = Complaint::new("anchors and aliases repeat too much");
            return Err((Some(at), found.allowed(format!("at most {ALIAS_BYTES_MAX} bytes"))));
        }
        Ok(())
    }
}

fn depth(node: &Node) -> usize {
    match &node.kind {
        Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => 0,
        Kind::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Kind::Map(entries) => 1 + entries.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
    }
}

fn check_tag(tag: Option<&Tag>, at: Pos) -> Result<(), Broken> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == "str") => {
            let found = format!("tag `{}`", super::report::shown(&tag.to_string()));
            Err((Some(at), Complaint::new(found).allowed("no tag but `!!str`")))
        }
        _ => Ok(()),
    }
}

/// What a plain scalar means in YAML's core schema. Infinite numbers, which JSON does not have, stay text.
fn resolve(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        _ => {}
    }
    number(text).map_or_else(|| Kind::Text(text.to_owned()), Kind::Number)
}

fn number(text: &str) -> Option<Number> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+')).map(Number::from);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return u64::from_str_radix(digits, 8).ok().filter(|_| !digits.starts_with('+')).map(Number::from);
    }
    if !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) {
        return None;
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole.into());
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}

/// JSON writes characters beyond U+FFFF as two `\u` escapes, which YAML does not know; `\U` is its word for them. Columns
/// behind such a character are two too small; nothing else changes.
fn join_surrogates(text: &str) -> Cow<'_, str> {
    let is_json =
        || text.trim_start().starts_with(['{', '[']) && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    if !(text.contains("\\ud") || text.contains("\\uD")) || !is_json() {
        return Cow::Borrowed(text);
    }
    let unit = |s: &str| s.strip_prefix("\\u").and_then(|s| s.get(..4)).and_then(|s| u16::from_str_radix(s, 16).ok());
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('\\') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let pair = unit(rest).and_then(|high| Some([high, unit(rest.get(6..)?)?]));
        match pair.and_then(|pair| char::decode_utf16(pair).next()?.ok()).filter(|c| u32::from(*c) > 0xFFFF) {
            Some(c) => {
                out.push_str(&format!("\\U{:08X}", u32::from(c)));
                rest = &rest[12..];
            }
            // An escape is taken with the character behind it, so that `\\ud83d` is not mistaken for one.
            None => {
                let taken = rest.char_indices().nth(2).map_or(rest.len(), |(i, _)| i);
                out.push_str(&rest[..taken]);
                rest = &rest[taken..];
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}
