//! The results of a study as tables: what `pipe query` asks.
//!
//! Each output is a table `STAGE_PORT`, the nodes of a stage one after the other with their axes as columns.
//! A folder that holds tables gives one for each (`STAGE_PORT_FILE`). All outputs of one type are one more table of the type's name (`metrics`, `predictions`), with a column
//! `stage`. `stages` has a row for each node: what its result cost. Only what a query names is read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pipe_engine::{
    Answer, Artifact, ArtifactFile, Cell, InputArtifact, QueryError, ResultTables, StageError, StudyResult,
    StudyTables, TableSummary,
};

use super::answer::{offset, reason};
use super::database::{Columns, Database, UnionColumn, columns};
use super::{grid, syntax};
use crate::artifact;
use crate::table::{Column, Table, dictionary, write_file};

/// What the registry is told.
pub(crate) const TABLES: ResultTables = ResultTables { list, query, grid: grid::grid, write, dictionary };

/// Writes an answer as Parquet. A column without values is one of text.
fn write(answer: &Answer, path: &Path) -> Result<(), StageError> {
    fn typed<T>(answer: &Answer, place: usize, value: impl Fn(&Cell) -> Option<T>) -> Vec<Option<T>> {
        answer.rows.iter().map(|row| value(&row[place])).collect()
    }
    let mut table = Table::new();
    for (place, name) in answer.columns.iter().enumerate() {
        let first = answer.rows.iter().map(|row| &row[place]).find(|cell| **cell != Cell::Null);
        let column = match first {
            Some(Cell::Bool(_)) => Column::Bool(typed(answer, place, |cell| match cell {
                Cell::Bool(value) => Some(*value),
                _ => None,
            })),
            Some(Cell::Integer(_)) => Column::Int64(typed(answer, place, |cell| match cell {
                Cell::Integer(value) => Some(*value),
                _ => None,
            })),
            Some(Cell::Real(_)) => Column::Float64(typed(answer, place, |cell| match cell {
                Cell::Real(value) => Some(*value),
                _ => None,
            })),
            _ => Column::Utf8(typed(answer, place, |cell| match cell {
                Cell::Text(value) => Some(value.clone()),
                _ => None,
            })),
        };
        table = table.with(name, column);
    }
    write_file(path, "stages", table)
}

/// The name of the column that says which stage a row of a union comes from.
const STAGE: &str = "stage";

/// SQLite takes no more tables of one type together.
const MOST_MEMBERS: usize = 500;

/// Types that are tables with tensors.
const TENSORS: [&str; 3] = [artifact::EMBEDDINGS.0, artifact::SALIENCY.0, artifact::WORD_SALIENCY.0];

/// One output of one stage, or a file in it.
struct Source {
    name: String,
    stage: String,
    port: String,
    artifact_type: String,
    rows: Option<u64>,
    artifacts: Vec<InputArtifact>,
    /// Or why it is no table that can be asked.
    columns: Result<Columns, String>,
}

/// All outputs of one type.
struct Union {
    name: String,
    columns: Vec<(String, &'static str)>,
    /// The sources, and how each gives the columns.
    members: Vec<(usize, Vec<UnionColumn>)>,
    /// Why it cannot be asked.
    problem: Option<String>,
}

/// What the engine knows of nodes.
struct Known {
    name: String,
    columns: Vec<(String, &'static str)>,
    rows: Vec<Vec<Cell>>,
}

impl Known {
    /// A table under a free name; columns are of the type of their first value.
    fn new(name: &str, table: &Answer, taken: &mut BTreeSet<String>) -> Self {
        let kind = |place: usize| {
            let first = table.rows.iter().map(|row| &row[place]).find(|cell| **cell != Cell::Null);
            match first {
                Some(Cell::Bool(_)) => "boolean",
                Some(Cell::Integer(_)) => "integer",
                Some(Cell::Real(_)) => "real",
                _ => "text",
            }
        };
        let columns = table.columns.iter().enumerate().map(|(place, name)| (name.clone(), kind(place)));
        Self { name: free(name, taken), columns: columns.collect(), rows: table.rows.clone() }
    }
}

/// The tables of a study.
pub(super) struct Tables {
    sources: Vec<Source>,
    unions: Vec<Union>,
    stages: Option<Known>,
}

impl Tables {
    /// Finds the tables among results, in the order of these. Rows are not read.
    pub(super) fn of(results: &[StudyResult]) -> Self {
        let mut places: BTreeMap<(&str, String), usize> = BTreeMap::new();
        let mut sources: Vec<Source> = Vec::new();
        for result in results {
            for (name, artifact) in tables_in(result) {
                let place = *places.entry((&result.stage, name.clone())).or_insert_with(|| {
                    sources.push(Source {
                        name,
                        stage: result.stage.clone(),
                        port: result.port.clone(),
                        artifact_type: artifact.artifact_type.clone(),
                        rows: Some(0),
                        artifacts: Vec::new(),
                        columns: Err(String::new()),
                    });
                    sources.len() - 1
                });
                let source = &mut sources[place];
                source.rows = source.rows.zip(result.rows).map(|(rows, more)| rows + more);
                let (axes, stage) = (result.axes.clone(), result.stage.clone());
                source.artifacts.push(InputArtifact { axes, stage, artifact });
            }
        }
        // SQLite takes names for equal that differ in capitals only.
        let mut taken = BTreeSet::new();
        for source in &mut sources {
            source.name = free(&source.name, &mut taken);
            source.columns = columns(&source.name, &source.artifacts).map_err(|error| error.to_string());
        }
        let unions = unions(&sources, &mut taken);
        Self { sources, unions, stages: None }
    }

    /// All tables of a study.
    fn of_study(study: &StudyTables) -> Self {
        let mut tables = Self::of(&study.results);
        if !study.stages.rows.is_empty() {
            let names = tables.summaries().into_iter().map(|table| table.name.to_lowercase());
            tables.stages = Some(Known::new("stages", &study.stages, &mut names.collect()));
        }
        tables
    }

    /// The columns of a union.
    pub(super) fn columns_of(&self, name: &str) -> Option<Vec<String>> {
        let union = self.unions.iter().find(|union| union.name == name)?;
        Some(union.columns.iter().map(|(column, _)| column.clone()).collect())
    }

    /// The columns of those tables that a text names, or of all.
    fn columns_near(&self, sql: &str) -> Vec<String> {
        let words: BTreeSet<String> = words(sql).map(|(_, word)| word.to_lowercase()).collect();
        let all = self.summaries();
        let named = all.iter().filter(|table| words.contains(&table.name.to_lowercase()));
        let named: Vec<&TableSummary> = named.collect();
        let tables = if named.is_empty() { all.iter().collect() } else { named };
        let columns = tables.iter().flat_map(|table| &table.columns).map(|(name, _)| name.clone());
        columns.collect::<BTreeSet<String>>().into_iter().collect()
    }

    fn summaries(&self) -> Vec<TableSummary> {
        let pairs = |columns: &[(String, &'static str)]| {
            columns.iter().map(|(name, kind)| (name.clone(), (*kind).to_owned())).collect()
        };
        let union = |union: &Union| {
            let members = || union.members.iter().map(|(place, _)| &self.sources[*place]);
            TableSummary {
                name: union.name.clone(),
                of: members().map(|source| format!("{}.{}", source.stage, source.port)).collect(),
                rows: members().map(|source| source.rows).sum(),
                columns: pairs(&union.columns),
                problem: union.problem.clone(),
            }
        };
        let source = |source: &Source| TableSummary {
            name: source.name.clone(),
            of: vec![format!("{}.{}", source.stage, source.port)],
            rows: source.rows,
            columns: source.columns.as_ref().map(|columns| pairs(&columns.declared)).unwrap_or_default(),
            problem: source.columns.as_ref().err().cloned(),
        };
        let known = |known: &Known| TableSummary {
            name: known.name.clone(),
            of: Vec::new(),
            rows: Some(known.rows.len() as u64),
            columns: pairs(&known.columns),
            problem: None,
        };
        let unions = self.unions.iter().map(union);
        unions.chain(self.stages.iter().map(known)).chain(self.sources.iter().map(source)).collect()
    }

    /// A database with all tables, and none of their rows.
    fn declare(&self) -> Result<Database, StageError> {
        let database = Database::create(Path::new(""))?;
        for source in &self.sources {
            if let Ok(columns) = &source.columns {
                database.declare(&source.name, columns)?;
            }
        }
        for union in self.unions.iter().filter(|union| union.problem.is_none()) {
            let names: Vec<String> = union.columns.iter().map(|(name, _)| name.clone()).collect();
            let members = union.members.iter();
            let members: Vec<(&str, Vec<UnionColumn>)> =
                members.map(|(place, values)| (self.sources[*place].name.as_str(), values.clone())).collect();
            database.declare_union(&union.name, &names, &members)?;
        }
        if let Some(known) = &self.stages {
            database.declare(&known.name, &Columns::plain(&known.columns))?;
        }
        Ok(database)
    }

    /// What a query answers.
    pub(super) fn ask(&self, sql: &str) -> Result<Table, QueryError> {
        let mut database = self.declare()?;
        let read = database.tables_of(sql).map_err(|error| self.explain(&error, sql, &database))?;
        // SQLite does not tell of every table: of two that are joined by `using`, only of one.
        let is_read = |place: usize, source: &Source| {
            let of_named = |union: &Union| {
                union.members.iter().any(|(member, _)| *member == place) && names(sql, &union.name)
            };
            read.contains(&source.name) || names(sql, &source.name) || self.unions.iter().any(of_named)
        };
        for (_, source) in self.sources.iter().enumerate().filter(|(place, source)| is_read(*place, source)) {
            if let Ok(columns) = &source.columns {
                let is_only = columns.declared.len() == 1;
                let wanted = |column: &str| is_only || may_read(sql, column);
                database.fill(&source.name, columns, &source.artifacts, &wanted)?;
            }
        }
        if let Some(known) = self.stages.as_ref().filter(|known| names(sql, &known.name)) {
            database.fill_cells(&known.name, &known.rows)?;
        }
        database.answer(sql, &|| Ok(())).map_err(|error| match error {
            StageError::Failed { message, source: None } => QueryError::question(message),
            other => QueryError::Results(other),
        })
    }

    /// A mistake of a query with its place, and what was perhaps meant.
    fn explain(&self, error: &rusqlite::Error, sql: &str, database: &Database) -> QueryError {
        let message = reason(error);
        let missing = |what: &str| message.strip_prefix(what).map(|name| name.trim().to_owned());
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        let mut hint = None;
        let unknown = if let Some(name) = missing("no such table:") {
            // As the study writes it.
            let name = name.replace('.', "_");
            let tables = self.summaries();
            if let Some(problem) =
                tables.iter().find(|one| one.name == name).and_then(|one| one.problem.clone())
            {
                return QueryError::question(format!("`{name}` cannot be read: {problem}"));
            }
            hint = Some("`--tables` lists the tables and their columns".to_owned());
            Some((name.clone(), name, tables.into_iter().map(|table| table.name).collect()))
        } else if let Some(name) = missing("no such column:") {
            hint =
                Some("`--tables` lists the columns of each table; texts stand in 'single quotes'".to_owned());
            Some((last(&name), last(&name), self.columns_near(sql)))
        } else if let Some(name) = missing("no such function:") {
            hint = Some("the functions are those of SQLite, and `docs/queries.md` has the others".to_owned());
            Some((name.clone(), name, database.functions()))
        } else {
            None
        };
        let found = unknown.as_ref().and_then(|(name, _, _)| {
            let last = name.rsplit('_').next().unwrap_or(name);
            let mut words = words(sql);
            words
                .clone()
                .find(|(_, word)| word.eq_ignore_ascii_case(name))
                .or_else(|| words.find(|(_, word)| *word == last))
        });
        let offset = offset(error).or(found.map(|(place, _)| place));
        QueryError::Question { message, offset, unknown: unknown.map(|(_, name, known)| (name, known)), hint }
    }
}

/// Whether an artifact of this type is one table, whatever number of files it has.
fn is_one_table(artifact_type: &str) -> bool {
    artifact_type.starts_with("table<") || TENSORS.contains(&artifact_type)
}

/// The tables of a result with their names: one, or of a folder each file that is a table.
fn tables_in(result: &StudyResult) -> Vec<(String, Artifact)> {
    let is_table = |path: &str| path.ends_with(".parquet") || path.ends_with(".arrow");
    let name = format!("{}_{}", result.stage, result.port);
    let mut files = result.artifact.files.iter().filter(|file| is_table(&file.path));
    if is_one_table(&result.artifact.artifact_type) {
        let is_there = files.next().is_some();
        return is_there.then(|| (name, result.artifact.clone())).into_iter().collect();
    }
    let one = |file: ArtifactFile| {
        let path = file.path.rsplit_once('.').map_or(file.path.as_str(), |(path, _)| path);
        let path: String = path.chars().map(|one| if one.is_alphanumeric() { one } else { '_' }).collect();
        (format!("{name}_{path}"), result.artifact.only(file))
    };
    files.map(one).collect()
}

/// The words of a query with their places.
fn words(sql: &str) -> impl Iterator<Item = (usize, &str)> + Clone {
    let is_word = |one: char| one.is_alphanumeric() || one == '_';
    sql.split(move |one| !is_word(one)).filter(|word| !word.is_empty()).map(move |word| {
        // Both are slices of one text.
        (word.as_ptr() as usize - sql.as_ptr() as usize, word)
    })
}

/// A text without what does not tell names apart.
fn folded(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect()
}

/// Whether a query names a table or a column. Where in doubt, it does.
fn names(sql: &str, name: &str) -> bool {
    name.contains('"') || folded(sql).contains(&folded(name))
}

/// Whether a query may read a column of this name: it names it, or takes all there are.
fn may_read(sql: &str, column: &str) -> bool {
    let text = folded(sql);
    text.replace("count(*)", "").contains('*') || text.contains("natural") || names(sql, column)
}

/// A name that nothing else has: with a number if it has to be.
fn free(name: &str, taken: &mut BTreeSet<String>) -> String {
    // These are SQLite's own.
    let name = if name.starts_with("sqlite_") { format!("stage_{name}") } else { name.to_owned() };
    let numbered = (2..).map(|number| format!("{name}_{number}"));
    let mut names = std::iter::once(name.clone()).chain(numbered);
    names.find(|name| taken.insert(name.to_lowercase())).expect("numbers do not end")
}

/// The tables of all outputs of one type. Those of no stated type (`tree`) have nothing in common.
fn unions(sources: &[Source], taken: &mut BTreeSet<String>) -> Vec<Union> {
    let mut types: Vec<&str> = Vec::new();
    for source in sources {
        if !types.contains(&source.artifact_type.as_str()) {
            types.push(&source.artifact_type);
        }
    }
    let mut unions = Vec::new();
    for artifact_type in types {
        let inner = artifact_type.strip_prefix("table<").and_then(|rest| rest.strip_suffix('>'));
        let stated = TENSORS.contains(&artifact_type);
        let Some(name) = inner.or(stated.then_some(artifact_type)).filter(|name| *name != "query") else {
            continue;
        };
        // A stage's own table goes first.
        if !taken.insert(name.to_lowercase()) {
            continue;
        }
        unions.push(union(name, artifact_type, sources));
    }
    unions
}

fn union(name: &str, artifact_type: &str, sources: &[Source]) -> Union {
    let members = sources.iter().enumerate().filter(|(_, source)| source.artifact_type == artifact_type);
    let members: Vec<(usize, &Source, &Columns)> = members
        .filter_map(|(place, source)| source.columns.as_ref().ok().map(|columns| (place, source, columns)))
        .collect();
    let mut all: Vec<(String, &'static str)> = vec![(STAGE.to_owned(), "text")];
    let mut problem = None;
    // What is an axis of one table, as `seed` may be, is text in all of them.
    let is_axis = |column: &str| members.iter().any(|(.., columns)| columns.is_axis(column));
    for (_, source, columns) in &members {
        for (column, kind) in &columns.declared {
            let kind: &'static str = if is_axis(column) { "text" } else { kind };
            match all.iter().find(|(known, _)| known.eq_ignore_ascii_case(column)) {
                None => all.push((column.clone(), kind)),
                Some((known, before)) if *before != kind && !known.eq_ignore_ascii_case(STAGE) => {
                    let text = format!(
                        "column `{column}` is {kind} in `{}`, and {before} in another table; ask these one by one",
                        source.name
                    );
                    problem.get_or_insert(text);
                }
                Some(_) => {}
            }
        }
    }
    if members.is_empty() || members.len() > MOST_MEMBERS {
        problem = Some(format!(
            "{} of its tables can be read, and at most {MOST_MEMBERS} are put together",
            members.len()
        ));
    }
    let values = |source: &Source, columns: &Columns| {
        let value = |(name, _): &(String, &'static str)| {
            if name == STAGE {
                return UnionColumn::Text(source.stage.clone());
            }
            let own = columns.declared.iter().find(|(column, _)| column.eq_ignore_ascii_case(name));
            own.map_or(UnionColumn::Missing, |(column, kind)| match *kind != "text" && is_axis(column) {
                true => UnionColumn::AsText(column.clone()),
                false => UnionColumn::Own(column.clone()),
            })
        };
        all.iter().map(value).collect::<Vec<UnionColumn>>()
    };
    let members = members.iter().map(|(place, source, columns)| (*place, values(source, columns))).collect();
    Union { name: name.to_owned(), columns: all.clone(), members, problem }
}

/// The tables of a study, those of a type first.
fn list(study: &StudyTables) -> Vec<TableSummary> {
    Tables::of_study(study).summaries()
}

/// What a query over results answers.
fn query(study: &StudyTables, sql: &str) -> Result<Answer, QueryError> {
    if let Some(mistake) = syntax(sql) {
        return Err(QueryError::Question {
            message: mistake.reason,
            offset: mistake.offset,
            unknown: None,
            hint: None,
        });
    }
    Ok(answer(&Tables::of_study(study).ask(sql)?))
}

/// A table as an answer.
fn answer(table: &Table) -> Answer {
    let columns = table.columns();
    let row = |row: usize| columns.iter().map(|(_, column)| cell(column, row)).collect();
    Answer {
        columns: columns.iter().map(|(name, _)| name.clone()).collect(),
        rows: (0..table.rows()).map(row).collect(),
    }
}

fn cell(column: &Column, row: usize) -> Cell {
    match column {
        Column::Utf8(values) => values[row].clone().map_or(Cell::Null, Cell::Text),
        Column::Bool(values) => values[row].map_or(Cell::Null, Cell::Bool),
        Column::Int32(values) => values[row].map_or(Cell::Null, |value| Cell::Integer(value.into())),
        Column::Int64(values) => values[row].map_or(Cell::Null, Cell::Integer),
        Column::Float64(values) => values[row].map_or(Cell::Null, Cell::Real),
        // A query answers with none of these.
        Column::ListInt64(_)
        | Column::ListInt32(_)
        | Column::ListFloat32(_)
        | Column::ListUtf8(_)
        | Column::Image(_)
        | Column::Binary(_) => Cell::Null,
    }
}
