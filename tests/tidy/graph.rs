//! The graph of modules inside each crate: no two modules beside each other use each other, not
//! even by a detour.

use std::collections::{BTreeMap, BTreeSet};

use super::crates::{manifest, members};
use super::sources::{Source, assert_none, sources};

/// The place of a module in its crate: `state::clean` is `["state", "clean"]`, the root is empty.
type Path = Vec<String>;

/// The modules of one crate.
struct Modules {
    /// The code of each, without comments and unit tests.
    code: BTreeMap<Path, String>,
    /// What each hands on: the name, and the path it stands for.
    exports: BTreeMap<Path, BTreeMap<String, Path>>,
}

/// The names that a `use` brings in, each with its whole path.
fn leaves(tree: &str, prefix: &[String], found: &mut Vec<(String, Path)>) {
    let tree = tree.trim();
    let (head, rest) = match tree.find('{') {
        Some(at) => (&tree[..at], Some(&tree[at + 1..tree.rfind('}').unwrap_or(tree.len())])),
        None => (tree, None),
    };
    let head = head.trim().trim_end_matches("::");
    let (head, name) = match head.split_once(" as ") {
        Some((head, name)) => (head, Some(name.trim().to_owned())),
        None => (head, None),
    };
    let mut path = prefix.to_vec();
    path.extend(
        head.split("::").filter(|part| !part.is_empty()).map(|part| part.trim().to_owned()),
    );
    let Some(rest) = rest else {
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if let Some(last) = path.last().cloned() {
            found.push((name.unwrap_or(last), path));
        }
        return;
    };
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                leaves(&rest[begin..at], &path, found);
                begin = at + 1;
            }
            _ => {}
        }
    }
    leaves(&rest[begin..], &path, found);
}

/// The statements `use …;` of some code: whether each is public, and its tree.
fn uses(code: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rsplit('\n').next().unwrap_or_default().trim();
        let public = line.starts_with("pub");
        if !(line.is_empty() || public && line.split_whitespace().count() == 1) {
            continue;
        }
        let Some(end) = code[at..].find(';') else { continue };
        found.push((
            public,
            code[at + 4..at + end].split_whitespace().collect::<Vec<_>>().join(" "),
        ));
    }
    found
}

/// The paths in the text that begin with `crate` or `super`, outside of `use`.
fn inline_paths(code: &str) -> Vec<Path> {
    let mut found = Vec::new();
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at]
                .ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$')
            {
                continue;
            }
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let end = code[at..].find(|c| !is_path(c)).unwrap_or(code.len() - at);
            let parts = code[at..at + end].split("::").filter(|part| !part.is_empty());
            found.push(parts.map(str::to_owned).collect());
        }
    }
    found
}

impl Modules {
    fn of(member: &str) -> Self {
        let root = format!("{member}/src/");
        let mut code = BTreeMap::new();
        for source in sources(&root).iter().filter(|source| !source.is_test()) {
            code.insert(place(source, &root), text(source));
        }
        let mut exports: BTreeMap<Path, BTreeMap<String, Path>> = BTreeMap::new();
        for (module, code) in &code {
            for (_, tree) in uses(code).into_iter().filter(|(public, _)| *public) {
                let mut names = Vec::new();
                leaves(&tree, &[], &mut names);
                exports.entry(module.clone()).or_default().extend(names);
            }
        }
        Self { code, exports }
    }

    /// The module of this crate in which a path ends, as it reads in `from`; `None` for another
    /// crate.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<Path> {
        let mut at: Path = from.to_vec();
        let mut parts = path.iter().peekable();
        match parts.peek()?.as_str() {
            "crate" => at.clear(),
            "self" | "super" => {}
            // A name without a root is a module below, or another crate.
            first if self.code.contains_key(&[from, &[first.to_owned()]].concat()) => {}
            _ => return None,
        }
        for part in parts {
            match part.as_str() {
                "crate" | "self" => continue,
                "super" => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let below = [&at[..], std::slice::from_ref(part)].concat();
            if self.code.contains_key(&below) {
                at = below;
                continue;
            }
            // An item: of this module, or one that it hands on.
            let handed_on = self.exports.get(&at).and_then(|names| names.get(part));
            return match handed_on.filter(|_| depth < 8) {
                Some(target) => self.resolve(&at, target, depth + 1).or(Some(at)),
                None => Some(at),
            };
        }
        Some(at)
    }

    /// For each place where modules stand beside each other: who uses whom there.
    fn siblings(&self) -> BTreeMap<Path, BTreeMap<String, BTreeSet<String>>> {
        let mut levels: BTreeMap<Path, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for (from, code) in &self.code {
            let mut paths = inline_paths(code);
            for (_, tree) in uses(code) {
                let mut names = Vec::new();
                leaves(&tree, &[], &mut names);
                paths.extend(names.into_iter().map(|(_, path)| path));
            }
            for to in paths.iter().filter_map(|path| self.resolve(from, path, 0)) {
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                // What is above or below oneself is not a sibling.
                if let (Some(here), Some(there)) = (from.get(common), to.get(common)) {
                    let level = levels.entry(from[..common].to_vec()).or_default();
                    level.entry(here.clone()).or_default().insert(there.clone());
                }
            }
        }
        levels
    }
}

fn place(source: &Source, root: &str) -> Path {
    let path = source.path.trim_start_matches(root).trim_end_matches(".rs");
    let parts = path.split('/').filter(|part| !["mod", "lib", "main"].contains(part));
    parts.map(str::to_owned).collect()
}

fn text(source: &Source) -> String {
    source.code().map(|(_, line)| line).collect::<Vec<_>>().join("\n")
}

/// The members of the graph that reach themselves.
fn in_circles(uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let reaches_itself = |start: &String| {
        let mut seen = BTreeSet::new();
        let mut queue: Vec<&String> = uses.get(start).into_iter().flatten().collect();
        while let Some(next) = queue.pop() {
            if next == start {
                return true;
            }
            if seen.insert(next) {
                queue.extend(uses.get(next).into_iter().flatten());
            }
        }
        false
    };
    uses.keys().filter(|name| reaches_itself(name)).cloned().collect()
}

#[test]
fn no_module_uses_one_that_uses_it() {
    let mut circles = Vec::new();
    for member in members(&manifest("Cargo.toml")) {
        if member == "tests" {
            continue;
        }
        for (level, uses) in Modules::of(&member).siblings() {
            let circle = in_circles(&uses);
            if circle.is_empty() {
                continue;
            }
            let place = format!("{member} {}", level.join("::"));
            let arrows: Vec<String> = circle
                .iter()
                .map(|name| {
                    let to: Vec<_> = uses[name].intersection(&circle).cloned().collect();
                    format!("{name} → {}", to.join(" "))
                })
                .collect();
            circles.push(format!("{place}: {}", arrows.join(", ")));
        }
    }
    assert_none("no circle of modules", &circles);
}

/// A crate that outgrows this is looked at: does it hold two things whose boundary can be named?
#[test]
fn no_crate_is_larger_than_one_boundary() {
    const LINES_MAX: usize = 12_000;
    let mut large = Vec::new();
    for member in members(&manifest("Cargo.toml")).iter().filter(|member| *member != "tests") {
        let product = sources(&format!("{member}/src"));
        let product = product.iter().filter(|source| !source.is_test());
        let lines: usize = product.map(|source| source.product().len()).sum();
        if lines > LINES_MAX {
            large.push(format!("{member}: {lines} lines"));
        }
    }
    assert_none("no crate has more than 12,000 lines, its tests apart", &large);
}

#[test]
fn the_search_for_circles_finds_circles() {
    let code = |text: &str| text.to_owned();
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Path>();
    let mut modules = Modules {
        code: BTreeMap::from([
            (vec![], code("mod a;\nmod b;\npub use b::{B, inner::C as D};\n")),
            (path("a"), code("use crate::{D, other::X};\n")),
            (path("b"), code("mod inner;\nuse crate::\n    c::Thing;\n")),
            (path("b::inner"), code("fn f() { super::super::c::g() }\n")),
            (path("c"), code("use std::fmt;\n")),
        ]),
        exports: BTreeMap::new(),
    };
    let exported = [("B", "b::B"), ("D", "b::inner::C")];
    let exported = exported.map(|(name, of)| (name.to_owned(), path(of)));
    modules.exports.insert(vec![], BTreeMap::from(exported));
    let uses = |modules: &Modules| modules.siblings()[&Path::new()].clone();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(uses(&modules)["a"], names(&["b"]));
    assert_eq!(uses(&modules)["b"], names(&["c"]));
    assert!(in_circles(&uses(&modules)).is_empty());
    modules.code.insert(path("c"), code("fn f() -> crate::a::A {}\n"));
    assert_eq!(in_circles(&uses(&modules)), names(&["a", "b", "c"]));
}
