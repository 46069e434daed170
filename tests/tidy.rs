//! The rules that no compiler checks: one-way layers, heads of files, lengths, what may be used
//! where, and documents that name what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules by layer: each may use those of the lines above its own.
const LAYERS: [&[&str]; 9] = [
    &["sys"],
    &["hash"],
    &["chunk"],
    &["pyramid", "store"],
    &["meta"],
    &["volume"],
    &["check"],
    &["fuse"],
    &["cli"],
];

/// What may touch the machine besides `sys`, and why.
const MACHINE: [(&str, &[&str]); 3] = [
    // Requests carry times as `SystemTime`; the mount reads /proc and /sys and opens /dev/fuse.
    ("src/fuse/", &["std::fs", "SystemTime"]),
    // Directories of volumes and mountpoints, the control socket, the file that `hash` reads.
    ("src/cli/", &["std::fs"]),
    ("src/main.rs", &[]),
];

const LINES_MAX: usize = 800;
const COLUMNS_MAX: usize = 100;

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Tests may use everything.
    fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs")
            || self.path.contains("/tests/")
            || self.path.starts_with("tests/")
            || self.path == "src/testing.rs"
            || self.path.ends_with("/fuzzing.rs")
            || self.path.starts_with("src/fuzzing/")
    }

    /// The lines of the program: no comments, nothing from a module of tests on.
    fn code(&self) -> impl Iterator<Item = &str> {
        let end = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let lines = self.text[..end].lines();
        lines.map(|line| line.split("//").next().unwrap_or(""))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    for dir in ["src", "tests", "benches", "examples", "fuzz/targets"] {
        collect(&root().join(dir), &mut files);
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.sort();
    let read = |path: PathBuf| Source {
        path: path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(),
        text: fs::read_to_string(&path).unwrap(),
    };
    let sources: Vec<Source> = files.into_iter().map(read).collect();
    assert!(50 < sources.len(), "the sources were not found");
    sources
}

fn fail_with(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules of the crate that a file names: `crate::x`, and each of `crate::{x, y}`.
fn modules_used(source: &Source) -> BTreeSet<String> {
    let code: String = source.code().collect::<Vec<_>>().join("\n");
    let mut used = BTreeSet::new();
    for part in code.split("crate::").skip(1) {
        let word = |text: &str| -> String {
            text.chars().take_while(|&letter| letter.is_alphanumeric() || letter == '_').collect()
        };
        match part.strip_prefix('{') {
            None => drop(used.insert(word(part))),
            Some(list) => {
                let (mut depth, mut item) = (0, String::new());
                for letter in list.chars() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            used.insert(word(std::mem::take(&mut item).trim()));
                        }
                        _ if depth == 0 => item.push(letter),
                        _ => {}
                    }
                }
                used.insert(word(item.trim()));
            }
        }
    }
    used.retain(|module| !module.is_empty());
    used
}

#[test]
fn layers_are_one_way() {
    let mut found = Vec::new();
    let mut crossings = 0;
    for source in sources().iter().filter(|source| !source.is_test()) {
        let Some(inner) = source.path.strip_prefix("src/") else { continue };
        let module = inner.split(['/', '.']).next().unwrap_or_default();
        let Some(own) = layer_of(module) else {
            let known = ["lib", "main"].contains(&module);
            if !known {
                found.push(format!("{}: the module stands in no layer", source.path));
            }
            continue;
        };
        for used in modules_used(source) {
            if used == module {
                continue;
            }
            crossings += 1;
            if layer_of(&used).is_none_or(|layer| own <= layer) {
                found.push(format!("{} uses {used}", source.path));
            }
        }
    }
    fail_with("layers are one-way", found);
    assert!(30 < crossings, "only {crossings} uses between modules were seen");
}

#[test]
fn files_have_heads_and_bounds() {
    let mut found = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        if !lines.first().is_some_and(|line| line.starts_with("//! ")) {
            found.push(format!("{}: no head", source.path));
        }
        if LINES_MAX < lines.len() {
            found.push(format!("{}: {} lines", source.path, lines.len()));
        }
        for (number, line) in lines.iter().enumerate() {
            // Text in quotes is left as it is by rustfmt too.
            if COLUMNS_MAX < line.chars().count() && !line.contains('"') {
                found.push(format!("{}:{}: too long", source.path, number + 1));
            }
        }
    }
    fail_with("each file starts with `//! ` and is short", found);
}

#[test]
fn nothing_is_left_for_later() {
    // In parts, so that this file is not found.
    let marks =
        [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("], ["dbg", "!("]];
    let marks = marks.map(|parts| parts.concat());
    let mut found = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                found.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    fail_with("nothing is left for later", found);
}

#[test]
fn the_machine_is_touched_in_sys_alone() {
    let mut found = Vec::new();
    for source in sources() {
        let in_sys = source.path.starts_with("src/sys/") || !source.path.starts_with("src/");
        if in_sys || source.is_test() {
            continue;
        }
        let allowed = MACHINE.iter().find(|(place, _)| source.path.starts_with(place));
        let allowed = allowed.map_or(&[][..], |(_, allowed)| allowed);
        for line in source.code() {
            for what in ["std::fs", "SystemTime", "Instant::now"] {
                if line.contains(what) && !allowed.contains(&what) {
                    found.push(format!("{}: {}", source.path, line.trim()));
                }
            }
            if line.contains("SystemTime::now") {
                found.push(format!("{}: {}", source.path, line.trim()));
            }
        }
    }
    fail_with("files and time are asked of sys", found);
}

/// Lines above a block in which its reason may begin.
const REASON_LINES: usize = 7;

#[test]
fn each_unsafe_block_has_its_reason_and_its_line_in_the_table() {
    // In parts, so that this file is not found.
    let word = ["uns", "afe {"].concat();
    let table = fs::read_to_string(root().join("docs/testing.md")).unwrap();
    let (mut found, mut count) = (Vec::new(), 0);
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, _) in lines.iter().enumerate().filter(|(_, line)| line.contains(&word)) {
            count += 1;
            let above = &lines[number.saturating_sub(REASON_LINES)..number];
            if !above.iter().any(|line| line.contains("// SAFETY: ")) {
                found.push(format!("{}:{}: no reason", source.path, number + 1));
            }
            let is_program = source.path.starts_with("src/") && !source.is_test();
            if is_program && !table.contains(&format!("`{}`", source.path)) {
                found.push(format!("{}: not in docs/testing.md", source.path));
            }
        }
    }
    fail_with("each block that the compiler does not vouch for has its reason", found);
    assert!(10 < count, "only {count} were seen");
}

/// What a document names in backquotes or as the target of a link, if it looks like a path.
fn paths_named(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2).map(str::to_owned);
    let linked = text.split("](").skip(1).filter_map(|part| part.split([')', '#']).next());
    let places = ["src/", "tests/", "docs/", "benches/", "examples/", "mount-scripts/", ".ci/"];
    let path = |text: &String| {
        let whole = !text.contains(|letter: char| " *<>{}…$".contains(letter));
        whole && places.iter().any(|place| text.starts_with(place))
    };
    quoted.chain(linked.map(str::to_owned)).filter(path).collect()
}

#[test]
fn documents_name_what_is_there() {
    let mut found = Vec::new();
    for document in ["README.md", "ARCHITECTURE.md"] {
        let Ok(text) = fs::read_to_string(root().join(document)) else { continue };
        for path in paths_named(&text) {
            if !root().join(&path).exists() {
                found.push(format!("{document}: {path}"));
            }
        }
    }
    fail_with("documents name what is there", found);
}

#[test]
fn each_dependency_has_its_reason_and_its_use() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let sources = sources();
    let (mut found, mut section, mut count) = (Vec::new(), "", 0);
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
            continue;
        }
        let Some((name, _)) = line.split_once(" = ") else { continue };
        if section != "[dependencies]" && section != "[dev-dependencies]" {
            continue;
        }
        count += 1;
        if !line.contains(" # ") {
            found.push(format!("{name} has no reason"));
        }
        let in_tests = section == "[dev-dependencies]";
        let word = format!("{}::", name.replace('-', "_"));
        let used = sources.iter().filter(|source| in_tests || !source.is_test());
        if !used.into_iter().any(|source| source.text.contains(&word)) {
            found.push(format!("{name} is not used"));
        }
    }
    fail_with("dependencies", found);
    assert!(20 < count, "only {count} dependencies were seen");
}
