//! `pipe init`: a study to begin with.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::arguments::{Arguments, InitArguments};
use super::{CliError, print, print_json};
use crate::exit;
use crate::kind::{Registry, Template};
use crate::language::{schema, suggestion};

const STUDY: &str = "study.toml";
const SCHEMA: &str = "pipeline.schema.json";
const IGNORED: &str = "/.pipe/\n/results/\n";

pub(crate) fn init(arguments: &Arguments, init: &InitArguments, registry: &Registry) -> Result<u8, CliError> {
    if init.template.as_deref() == Some("help") {
        return print(&list(registry));
    }
    let template = template(init.template.as_deref(), registry)?;
    let folder = &init.folder;
    // Nothing of the user's is replaced; a file of git's is only added to by hand.
    for name in [STUDY, SCHEMA] {
        if folder.join(name).symlink_metadata().is_ok() {
            let text = format!("error: `{}` exists", folder.join(name).display());
            let mut error = CliError::new(exit::USAGE, text);
            error.hint = Some("name another folder: `pipe init FOLDER`".to_owned());
            return Err(error);
        }
    }
    let wrong = |error| CliError::environment("writing the study", &error);
    std::fs::create_dir_all(folder).map_err(wrong)?;
    let text = format!("#:schema ./{SCHEMA}\n{}", template.text);
    let mut written = vec![STUDY, SCHEMA];
    create(&folder.join(SCHEMA), format!("{:#}\n", schema(registry)).as_bytes()).map_err(wrong)?;
    create(&folder.join(STUDY), text.as_bytes()).map_err(wrong)?;
    if folder.join(".gitignore").symlink_metadata().is_err() {
        create(&folder.join(".gitignore"), IGNORED.as_bytes()).map_err(wrong)?;
        written.push(".gitignore");
    }
    if arguments.global.json {
        return print_json(&json!({
            "version": 1, "folder": folder, "template": template.name, "written": written,
        }));
    }
    let enter = if folder == Path::new(".") { String::new() } else { format!("  cd {}\n", folder.display()) };
    print(&format!(
        "wrote {} ({}: {})\n\nNext:\n{enter}  pipe check {STUDY}\n  pipe plan {STUDY}\n  pipe run {STUDY}\n",
        written.join(", "),
        template.name,
        template.summary
    ))
}

/// Makes a file that must not be there yet, whole or not at all.
fn create(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".{}", uuid::Uuid::now_v7()));
    let written = std::fs::File::create_new(&temporary)
        .and_then(|mut file| file.write_all(content))
        // A link, unlike a rename, never replaces what came into being meanwhile.
        .and_then(|()| std::fs::hard_link(&temporary, path));
    let removed = std::fs::remove_file(&temporary);
    written.and(removed)
}

fn template<'a>(name: Option<&str>, registry: &'a Registry) -> Result<&'a Template, CliError> {
    let templates = registry.templates();
    let found = match name {
        Some(name) => templates.iter().find(|template| template.name == name),
        None => templates.first(),
    };
    found.ok_or_else(|| {
        let name = name.unwrap_or_default();
        let mut error = CliError::new(exit::USAGE, format!("error: there is no template `{name}`"));
        let names = templates.iter().map(|template| template.name);
        error.hint =
            suggestion(name, names).or_else(|| Some("`pipe init --template help` lists them".to_owned()));
        error
    })
}

fn list(registry: &Registry) -> String {
    let width = registry.templates().iter().map(|template| template.name.len()).max().unwrap_or(0);
    let line = |template: &Template| format!("{:width$}  {}\n", template.name, template.summary);
    registry.templates().iter().map(line).collect()
}
