//! What Slurm's accounts say of tasks that the queue has forgotten: only for the words of a message, since the store decides.

use super::command;

/// How far back they are asked: without it they begin at midnight.
const SINCE: &str = "now-30days";
const COLUMNS: &str = "JobID,State,ExitCode,MaxRSS";

/// The end of a task of the job of this name, in words; none where Slurm keeps no accounts, or has none of it.
pub(crate) fn end_of(name: &str, task: usize) -> Option<String> {
    let arguments = ["--parsable2", "--starttime", SINCE, "--format", COLUMNS, "--name", name];
    let said = command::run("sacct", &arguments.map(str::to_owned), "").ok()?;
    parse(&said.out, task)
}

/// The last line of a task in the table of `sacct`. That the program succeeded says nothing: without accounts it does too.
fn parse(table: &str, task: usize) -> Option<String> {
    let mut lines = table.lines();
    if lines.next()? != COLUMNS.replace(',', "|") {
        return None;
    }
    let suffix = format!("_{task}");
    let mut end = None;
    let mut memory = None;
    for line in lines {
        let columns: Vec<&str> = line.split('|').collect();
        let [id, state, exit, most] = columns[..] else { continue };
        // Steps (`7_0.batch`) know the memory, the job itself how it ended.
        let (job, step) = id.split_once('.').map_or((id, false), |(job, _)| (job, true));
        if !job.ends_with(&suffix) {
            continue;
        }
        if !step {
            end = Some((state, exit));
        }
        if !most.is_empty() {
            memory = Some(most);
        }
    }
    let (state, exit) = end?;
    let memory = memory.map(|memory| format!(", at most {memory} of memory")).unwrap_or_default();
    Some(format!("{state}, exit code {exit}{memory}, as `sacct` has it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_task_is_read_from_its_lines() {
        let table = "JobID|State|ExitCode|MaxRSS\n7_0|COMPLETED|0:0|\n7_0.batch|COMPLETED|0:0|1200K\n\
                     7_10|CANCELLED by 1000|0:15|\n7_1|NODE_FAIL|1:0|\n7_1.batch|CANCELLED|0:9|8812K\n\
                     7_1|OUT_OF_MEMORY|0:125|\n7_1.batch|OUT_OF_MEMORY|0:125|204800K\nnonsense\n";
        // Of a task that was requeued the last line counts.
        assert_eq!(
            parse(table, 1).unwrap(),
            "OUT_OF_MEMORY, exit code 0:125, at most 204800K of memory, as `sacct` has it"
        );
        assert_eq!(parse(table, 10).unwrap(), "CANCELLED by 1000, exit code 0:15, as `sacct` has it");
        assert_eq!(parse(table, 2), None);
        // As clusters without accounts answer, with success.
        assert_eq!(parse("", 1), None);
        assert_eq!(parse("Slurm accounting storage is disabled", 1), None);
    }
}
