//! The figures in the documents: what is between two markers is written anew.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::chaos::report::Report;

/// Where the figures begin.
const BEGIN: &str = "<!-- chaos: begin, written by `make chaos REPORT=1` -->";
/// Where they end.
const END: &str = "<!-- chaos: end -->";

/// Writes the reports between the markers of a document.
///
/// # Errors
/// It has no markers, or cannot be written.
pub fn write(path: &Path, reports: &[Report]) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let sections: Vec<String> = reports.iter().map(Report::markdown).collect();
    Ok(fs::write(path, between(&text, &sections.join("\n"))?)?)
}

fn between(text: &str, new: &str) -> anyhow::Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("no line `{BEGIN}`"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no line `{END}` behind it"))?;
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", new.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_the_markers_is_replaced_and_nothing_else() {
        let text = format!("# Head\n{BEGIN}\nold\n{END}\ntail\n");
        let new = between(&text, "new\n").unwrap();
        assert_eq!(new, format!("# Head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"));
        assert_eq!(between(&new, "new\n").unwrap(), new);
        assert!(between("# Head\n", "new").is_err());
    }
}
