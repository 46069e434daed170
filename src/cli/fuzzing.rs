//! What fuzzing and its tests do with messages of the control socket and with options of a mount.

use super::control::{Answer, Place, Request};
use super::options;

/// Takes bytes as a request and as an answer: what is read is written as the same again.
pub fn control(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let again = serde_json::to_vec(&request).and_then(|line| serde_json::from_slice(&line));
        assert_eq!(again.ok(), Some(request));
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(bytes) {
        let again = serde_json::to_vec(&answer).and_then(|line| serde_json::from_slice(&line));
        assert_eq!(again.ok(), Some(answer));
    }
}

/// Takes bytes as the list behind `-o`.
pub fn mount_options(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(mut parsed) = options::parse(&text) else { return };
    let twice = options::parse(&format!("{text},{text}"));
    assert_eq!(twice.as_ref(), Ok(&parsed), "said twice is said once");
    let once = parsed.clone();
    parsed.merge(&once);
    assert_eq!(parsed, once);
    assert_eq!(once.refuse_changes(&once), Ok(()));
    assert_eq!(once.check(true), Ok(()));
    let _ = (once.check(false), once.change());
}

/// Valid bytes of each, by the name of its target.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let place =
        Place { volume: "/v".to_owned(), device: Some("0:41".to_owned()), mounted: true, pid: 7 };
    let requests = [Request::Status, Request::Remount { options: "ro,nosuid".to_owned() }];
    let answers = [
        Answer::Place(place),
        Answer::Waiting,
        Answer::Failed { why: "the disk is full".to_owned() },
    ];
    let requests = requests.iter().map(serde_json::to_vec);
    let lines = requests.chain(answers.iter().map(serde_json::to_vec));
    let lists = [
        "ro,allow_other,nosuid,nodev,sync,cache=64MiB,index_memory=1GiB,commit=30,log=/l",
        "defaults,rw,_netdev,x-systemd.automount,remount,user_id=0,subtype=none,strictatime",
    ];
    let lists = lists.map(|list| ("mount_options", list.as_bytes().to_vec()));
    lines.flatten().map(|line| ("control", line)).chain(lists).collect()
}
