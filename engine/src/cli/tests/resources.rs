//! What actions ask for is never exceeded.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::World;
use crate::context::StageContext;

/// By the text of the stage: how many run now, how many ran at most, and the slots that are in use.
static MEETINGS: Mutex<BTreeMap<String, Meeting>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Meeting {
    now: usize,
    most: usize,
    gpus: Vec<usize>,
    seen: Vec<usize>,
}

/// What a stage of the tests does: it stays for a moment, and notes who else is there.
pub(super) fn meet(text: &str, context: &StageContext<'_>) {
    let with = |change: &dyn Fn(&mut Meeting)| {
        change(MEETINGS.lock().unwrap().entry(text.to_owned()).or_default());
    };
    with(&|meeting| {
        meeting.now += 1;
        meeting.most = meeting.most.max(meeting.now);
        for slot in context.gpus() {
            assert!(!meeting.gpus.contains(slot), "slot {slot} is given twice");
            meeting.gpus.push(*slot);
            meeting.seen.push(*slot);
        }
    });
    std::thread::sleep(Duration::from_millis(40));
    with(&|meeting| {
        meeting.now -= 1;
        meeting.gpus.retain(|slot| !context.gpus().contains(slot));
    });
}

/// Runs eight stages that ask for `resources`; how many ran at most, and the slots that they had.
fn most_at_once(text: &str, resources: &str) -> (usize, Vec<usize>) {
    let mut study =
        "[executor.local]\ncpu = 4\ngpu = 2\nmem = \"1GiB\"\ntokens = { licence = 3 }\n".to_owned();
    study.push_str(&format!(
        "[stage.a]\nkind = \"note\"\nmatrix = {{ n = [1, 2, 3, 4, 5, 6, 7, 8] }}\n\
         params = {{ text = \"{text}\", does = \"meet\", number = \"${{n}}\" }}\nresources = {{ {resources} }}\n"
    ));
    let world = World::new(&study);
    assert_eq!(world.pipe("run", &["--durability", "rename"]), 0);
    assert_eq!(world.started().len(), 8);
    let mut meetings = MEETINGS.lock().unwrap();
    let meeting = meetings.remove(text).unwrap();
    let mut seen = meeting.seen;
    seen.sort_unstable();
    seen.dedup();
    (meeting.most, seen)
}

#[test]
fn actions_take_turns_at_what_there_is() {
    assert_eq!(most_at_once("nothing", ""), (4, vec![]));
    assert_eq!(most_at_once("cores", "cpu = 2"), (2, vec![]));
    assert_eq!(most_at_once("memory", "mem = \"600MiB\""), (1, vec![]));
    assert_eq!(most_at_once("devices", "gpu = 1"), (2, vec![0, 1]));
    assert_eq!(most_at_once("two devices", "gpu = 2"), (1, vec![0, 1]));
    assert_eq!(most_at_once("tokens", "licence = 1"), (3, vec![]));
    assert_eq!(most_at_once("more cores than there are", "cpu = 99"), (1, vec![]));
}

/// What an action may take changes nothing of what it gives.
#[test]
fn resources_are_in_no_key() {
    let study = |executor: &str, resources: &str| {
        format!("{executor}[stage.a]\nkind = \"note\"\nparams = {{ text = \"x\" }}\n{resources}")
    };
    let world = World::new(&study("", ""));
    assert_eq!(world.pipe("run", &[]), 0);
    world.write(&study(
        "[executor.local]\ntokens = { licence = 2 }\ngpu = 1\n",
        "resources = { cpu = 2, gpu = 1, licence = 2, mem = 1000 }\n",
    ));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.started(), [] as [&str; 0]);
    let shown = world.answer("show", &["a", "--json"]);
    let resources = serde_json::json!({ "cpu": 2, "gpu": 1, "licence": 2, "mem": 1000 });
    assert_eq!(shown["nodes"][0]["resources"], resources);
}
