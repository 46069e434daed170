//! The superblock in `docs/format.md` is what is written.

use super::*;

#[test]
fn docs_format_shows_the_superblock() {
    let document = include_str!("../../../docs/format.md");
    let example = document.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let written = Superblock::new(&SimRng::new(7), &CreateOptions::default()).format();
    assert_eq!(example, Some(written.as_str()));
}
