//! Random studies under random edits and reverts, against a clean build.

use super::{World, stage};

/// What the program has to do and to write, computed without it: a node is its text and what it reads.
#[test]
fn random_studies_under_random_edits_are_what_a_clean_build_gives() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..6 {
        let count = 1 + random(14);
        let mut nodes: Vec<(usize, Vec<usize>)> = (0..count)
            .map(|index| {
                let reads = (0..random(4)).filter(|_| index > 0).map(|_| random(index.max(1))).collect();
                (random(5), reads)
            })
            .collect();
        let write = |nodes: &[(usize, Vec<usize>)]| -> String {
            let one = |(index, (text, reads)): (usize, &(usize, Vec<usize>))| {
                let inputs: Vec<String> =
                    reads.iter().enumerate().map(|(port, read)| format!("i{port} = \"n{read}\"")).collect();
                stage(&format!("n{index}"), &format!("text = \"{text}\""), &inputs.join(", "))
            };
            nodes.iter().enumerate().map(one).collect()
        };
        let world = World::new(&write(&nodes));
        let mut known = std::collections::BTreeSet::new();
        let mut before = nodes.clone();
        for step in 0..6 {
            let mut contents: Vec<String> = Vec::new();
            let mut new = 0;
            for (text, reads) in &nodes {
                let read: Vec<String> = reads.iter().map(|read| contents[*read].clone()).collect();
                contents.push(format!("{text}{}", read.concat()));
                new += usize::from(known.insert((*text, read)));
            }
            assert_eq!(world.pipe("run", &["--durability", "rename"]), 0);
            assert_eq!(world.started().len(), new, "step {step} of {nodes:?}");
            for (index, content) in contents.iter().enumerate() {
                let path = world.path(&format!("results/w/n{index}/out/text.txt"));
                assert_eq!(&std::fs::read_to_string(path).unwrap(), content, "n{index} of {nodes:?}");
            }
            // Going back costs nothing: every second step reverts.
            if step % 2 == 1 {
                nodes.clone_from(&before);
            } else {
                before.clone_from(&nodes);
                let changed = random(count);
                match random(3) {
                    0 if changed > 0 => nodes[changed].1.push(random(changed)),
                    1 => _ = nodes[changed].1.pop(),
                    _ => nodes[changed].0 = random(5),
                }
            }
            world.write(&write(&nodes));
        }
    }
}
