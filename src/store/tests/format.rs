//! The worked example of `docs/format.md` is what the store writes.

use super::*;

const DOCUMENT: &str = include_str!("../../../docs/format.md");

fn hex(bytes: &[u8]) -> String {
    let mut lines = Vec::new();
    for (number, line) in bytes.chunks(16).enumerate() {
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(format!("{:04x}  {}", number * 16, digits.join(" ")));
    }
    lines.join("\n")
}

#[test]
fn the_worked_example_of_the_document_is_what_is_written() {
    let disk = new_disk();
    let id = std::array::from_fn(|at| at as u8);
    let from = LogPosition::default();
    let opened = Store::open(shared(&disk), Profile::DEFAULT, id, small(), from).unwrap();
    let store = opened.store;
    let data = Profile::DEFAULT.address(5, b"hello");
    store.put_data(&[(data, b"hello")]).unwrap();
    let tree = Tree { span: 8192, children: vec![data, Address::default()], filled: vec![5, 0] };
    let address = Profile::DEFAULT.address(tree.span, &tree.payload());
    store.put_tree(address, tree).unwrap();
    commit(&store, b"entries").unwrap();
    let file = disk.open("packs/01/0000000000000001.pack", Access::Read).unwrap();
    let written = hex(&pack::read(&*file, 0, 4096).unwrap());
    assert!(DOCUMENT.contains(&format!("```\n{written}\n```\n")), "write instead:\n{written}");
}
