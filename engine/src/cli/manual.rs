//! `pipe man`: manual pages, made of what `--help` is made of.

use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use super::arguments::Arguments;
use super::{CliError, print};

/// Prints the page of the program, or writes that and one for each command into a folder.
pub(crate) fn man(folder: Option<&Path>) -> Result<u8, CliError> {
    let mut program = Arguments::command();
    program.build();
    let render = |command: clap::Command| {
        let mut page = Vec::new();
        Man::new(command).render(&mut page).expect("a page is written to memory");
        page
    };
    let Some(folder) = folder else {
        return print(&String::from_utf8_lossy(&render(program)));
    };
    let wrong = |error| CliError::environment(&format!("writing pages to `{}`", folder.display()), &error);
    std::fs::create_dir_all(folder).map_err(wrong)?;
    let mut written = 0;
    let visible: Vec<clap::Command> =
        program.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    for command in visible.into_iter().chain([program]) {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
        if name.ends_with("-help") {
            continue;
        }
        super::answer::write_whole(&folder.join(format!("{name}.1")), &render(command)).map_err(wrong)?;
        written += 1;
    }
    print(&format!("wrote {written} pages to {}\n", folder.display()))
}
