//! Finding the expressions in a text: `${{ … }}`, and `$${{` for a literal `${{`.

/// A stretch of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    /// Stands for itself.
    Literal(&'t str),
    /// What is between `${{` and `}}`, trimmed.
    Expression(&'t str),
}

/// Splits a text. Empty literals are left out.
///
/// # Errors
/// An expression that is not closed, or empty.
pub(super) fn split(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${{") {
        let before = &rest[..start];
        let inner = &rest[start + 3..];
        if let Some(before) = before.strip_suffix('$') {
            literal(&mut pieces, before);
            literal(&mut pieces, "${{");
            rest = inner;
            continue;
        }
        literal(&mut pieces, before);
        let Some(end) = end_of_expression(inner) else {
            return Err("unclosed `${{`: a `}}` must follow; `$${{` stands for the text `${{`".to_owned());
        };
        let expression = inner[..end].trim();
        if expression.is_empty() {
            return Err("empty expression `${{ }}`".to_owned());
        }
        pieces.push(Piece::Expression(expression));
        rest = &inner[end + 2..];
    }
    literal(&mut pieces, rest);
    Ok(pieces)
}

fn literal<'t>(pieces: &mut Vec<Piece<'t>>, text: &'t str) {
    if !text.is_empty() {
        pieces.push(Piece::Literal(text));
    }
}

/// Where the closing `}}` begins: outside of strings, and outside of maps, which may end in `}}` themselves.
fn end_of_expression(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut open) = (0, 0usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' | b'\'' => {
                let raw = at > 0 && bytes[at - 1].eq_ignore_ascii_case(&b'r');
                at = end_of_string(bytes, at, raw)?;
                continue;
            }
            b'{' => open += 1,
            b'}' if open > 0 => open -= 1,
            b'}' if bytes.get(at + 1) == Some(&b'}') => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The place behind the string that begins at `start`, in one or three quotes.
fn end_of_string(bytes: &[u8], start: usize, raw: bool) -> Option<usize> {
    let quote = bytes[start];
    let triple = bytes[start..].starts_with(&[quote; 3]);
    let close: &[u8] = if triple { &[quote; 3] } else { &[quote] };
    let mut at = start + close.len();
    while at < bytes.len() {
        if bytes[at] == b'\\' && !raw {
            at += 2;
        } else if bytes[at..].starts_with(close) {
            return Some(at + close.len());
        } else {
            at += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Piece::*, *};

    #[test]
    fn expressions_are_found_between_their_braces() {
        for (text, pieces) in [
            ("", vec![]),
            ("plain $x {{ y }}", vec![Literal("plain $x {{ y }}")]),
            ("${{ a }}", vec![Expression("a")]),
            ("x${{a}}y${{ b }}", vec![Literal("x"), Expression("a"), Literal("y"), Expression("b")]),
            ("$${{ a }}", vec![Literal("${{"), Literal(" a }}")]),
            ("${{ {'a': {'b': 1}} }}", vec![Expression("{'a': {'b': 1}}")]),
            (r#"${{ "}}\"}}" + '}}' }}"#, vec![Expression(r#""}}\"}}" + '}}'"#)]),
            (r#"${{ r"\" + """a"}}""" }}"#, vec![Expression(r#"r"\" + """a"}}""""#)]),
            ("ä${{ 'ü' }}ö", vec![Literal("ä"), Expression("'ü'"), Literal("ö")]),
        ] {
            assert_eq!(split(text), Ok(pieces), "{text}");
        }
        for bad in ["${{", "${{ a }", "${{ 'a }}", "${{ {'a': 1 }}", "${{ }}", "x ${{}}"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
