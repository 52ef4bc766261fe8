//! The git revision of a project, read from its files: records say which state of the sources they
//! were made with.

use std::path::Path;

/// The commit that is checked out in `project`; none if it is no git repository, or an unusual one.
pub(crate) fn revision(project: &Path) -> Option<String> {
    let dot_git = project.join(".git");
    // In a linked worktree `.git` is a file that names the real folder.
    let folder = match std::fs::read_to_string(&dot_git) {
        Ok(text) => project.join(text.strip_prefix("gitdir:")?.trim()),
        Err(_) => dot_git,
    };
    let head = std::fs::read_to_string(folder.join("HEAD")).ok()?;
    let Some(name) = head.trim().strip_prefix("ref: ") else { return hash(head.trim()) };
    // Branches of a linked worktree lie in the repository that it belongs to.
    let common = std::fs::read_to_string(folder.join("commondir")).ok();
    let common = common.map_or_else(|| folder.clone(), |text| folder.join(text.trim()));
    if let Ok(text) = std::fs::read_to_string(common.join(name)) {
        return hash(text.trim());
    }
    let packed = std::fs::read_to_string(common.join("packed-refs")).ok()?;
    let line = packed.lines().find(|line| line.split_once(' ').is_some_and(|(_, packed)| packed == name))?;
    hash(line.split_once(' ')?.0)
}

fn hash(text: &str) -> Option<String> {
    (text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::revision;

    #[test]
    fn a_revision_is_found_loose_packed_detached_and_linked() {
        let folder = tempfile::TempDir::new().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(revision(folder.path()), None);
        let (loose, packed) = ("a".repeat(40), "b".repeat(40));
        write(".git/HEAD", "ref: refs/heads/main\n");
        assert_eq!(revision(folder.path()), None, "nothing was committed");
        write(".git/packed-refs", &format!("# pack-refs with: peeled\n{packed} refs/heads/main\n"));
        assert_eq!(revision(folder.path()), Some(packed));
        write(".git/refs/heads/main", &format!("{loose}\n"));
        assert_eq!(revision(folder.path()), Some(loose.clone()));
        write("linked/.git", "gitdir: ../.git/worktrees/linked\n");
        write(".git/worktrees/linked/HEAD", "ref: refs/heads/main\n");
        write(".git/worktrees/linked/commondir", "../..\n");
        assert_eq!(revision(&folder.path().join("linked")), Some(loose.clone()));
        write(".git/HEAD", &format!("{loose}\n"));
        assert_eq!(revision(folder.path()), Some(loose));
        write(".git/HEAD", "ref: ../../../etc/hostname");
        assert_eq!(revision(folder.path()), None);
    }
}
