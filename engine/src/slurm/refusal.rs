//! Why `sbatch` refused, and what follows.

/// The class of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The controller has no time, or the answer was lost: it may even have accepted.
    Transient,
    /// There are too many jobs of ours.
    Quota,
    /// What was asked for is never to be had; names of the values it is about, most likely the first.
    Permanent(&'static [&'static str]),
    /// The array is too large.
    Size,
    Unknown,
}

const TABLE: [(&str, Refusal); 21] = [
    ("Unable to contact slurm controller", Refusal::Transient),
    ("Socket timed out", Refusal::Transient),
    ("Slurm temporarily unable to accept job", Refusal::Transient),
    ("Resource temporarily unavailable", Refusal::Transient),
    ("RPC rate limit", Refusal::Transient),
    ("rate limit", Refusal::Transient),
    ("Connection refused", Refusal::Transient),
    ("QOSMaxSubmitJobPerUserLimit", Refusal::Quota),
    ("AssocMaxSubmitJobLimit", Refusal::Quota),
    ("violates accounting/QOS policy", Refusal::Quota),
    (
        "Requested node configuration is not available",
        Refusal::Permanent(&["cpu", "mem", "gpu", "partition"]),
    ),
    ("Memory specification can not be satisfied", Refusal::Permanent(&["mem", "partition"])),
    ("nvalid partition", Refusal::Permanent(&["partition"])),
    ("nvalid account", Refusal::Permanent(&["account"])),
    ("nvalid qos", Refusal::Permanent(&["qos"])),
    ("Requested time limit is invalid", Refusal::Permanent(&["time", "partition"])),
    ("nvalid generic resource", Refusal::Permanent(&["gpu"])),
    ("nvalid feature", Refusal::Permanent(&["constraint"])),
    ("reservation is invalid", Refusal::Permanent(&["reservation"])),
    ("More processors requested than permitted", Refusal::Permanent(&["cpu"])),
    ("Invalid job array specification", Refusal::Size),
];

/// The class of what `sbatch` wrote on its standard error.
pub(crate) fn class(text: &str) -> Refusal {
    let known = TABLE.iter().find(|(known, _)| text.contains(known));
    known.map_or(Refusal::Unknown, |(_, refusal)| *refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_classes() {
        let batch = "sbatch: error: Batch job submission failed: ";
        for (text, refusal) in [
            ("Unable to contact slurm controller (connect failure)", Refusal::Transient),
            ("Socket timed out on send/recv operation", Refusal::Transient),
            (
                "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
                Refusal::Quota,
            ),
            ("Invalid job array specification", Refusal::Size),
            ("the dog ate it", Refusal::Unknown),
        ] {
            assert_eq!(class(&format!("{batch}{text}")), refusal, "{text}");
        }
        for (text, about) in [
            ("invalid partition specified: nosuch", "partition"),
            ("Invalid generic resource (gres) specification", "gpu"),
            ("Memory specification can not be satisfied", "mem"),
            ("Requested time limit is invalid (missing or exceeds some limit)", "time"),
            ("Invalid feature specification", "constraint"),
            ("Invalid account or account/partition combination specified", "account"),
            ("Requested node configuration is not available", "cpu"),
        ] {
            let Refusal::Permanent(found) = class(text) else { panic!("{text}") };
            assert_eq!(found.first(), Some(&about), "{text}");
        }
    }
}
