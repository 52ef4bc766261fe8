//! A table in memory: plain columns of nullable values.

use std::collections::BTreeMap;

use pipe_engine::StageError;

/// The values of a column.
#[derive(Clone, PartialEq, Debug)]
pub enum Column {
    /// Text.
    Utf8(Vec<Option<String>>),
    /// Truth values.
    Bool(Vec<Option<bool>>),
    /// Small integers (sizes).
    Int32(Vec<Option<i32>>),
    /// Integers.
    Int64(Vec<Option<i64>>),
    /// Numbers.
    Float64(Vec<Option<f64>>),
    /// Lists of integers (labels).
    ListInt64(Vec<Option<Vec<i64>>>),
    /// Lists of small integers (class indices, token ids).
    ListInt32(Vec<Option<Vec<i32>>>),
    /// Lists of f32 (scores).
    ListFloat32(Vec<Option<Vec<f32>>>),
    /// Lists of texts.
    ListUtf8(Vec<Option<Vec<String>>>),
    /// Encoded files: `struct<bytes, path>`, as Hugging Face's `Image`.
    Image(Vec<Option<(Vec<u8>, String)>>),
    /// Raw bytes.
    Binary(Vec<Option<Vec<u8>>>),
}

macro_rules! each {
    ($column:expr, $values:ident => $body:expr) => {
        match $column {
            Column::Utf8($values) => $body,
            Column::Bool($values) => $body,
            Column::Int32($values) => $body,
            Column::Int64($values) => $body,
            Column::Float64($values) => $body,
            Column::ListInt64($values) => $body,
            Column::ListInt32($values) => $body,
            Column::ListFloat32($values) => $body,
            Column::ListUtf8($values) => $body,
            Column::Image($values) => $body,
            Column::Binary($values) => $body,
        }
    };
}

impl Column {
    /// Number of rows.
    pub fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first row without a value, if any.
    pub(crate) fn first_null(&self) -> Option<usize> {
        each!(self, values => values.iter().position(Option::is_none))
    }

    /// Texts that are all there.
    pub fn texts(values: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::Utf8(values.into_iter().map(|value| Some(value.into())).collect())
    }

    /// The rows at `indices`, in that order.
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Self {
        fn pick<T: Clone>(values: &[T], indices: &[usize]) -> Vec<T> {
            indices.iter().map(|index| values[*index].clone()).collect()
        }
        match self {
            Self::Utf8(values) => Self::Utf8(pick(values, indices)),
            Self::Bool(values) => Self::Bool(pick(values, indices)),
            Self::Int32(values) => Self::Int32(pick(values, indices)),
            Self::Int64(values) => Self::Int64(pick(values, indices)),
            Self::Float64(values) => Self::Float64(pick(values, indices)),
            Self::ListInt64(values) => Self::ListInt64(pick(values, indices)),
            Self::ListInt32(values) => Self::ListInt32(pick(values, indices)),
            Self::ListFloat32(values) => Self::ListFloat32(pick(values, indices)),
            Self::ListUtf8(values) => Self::ListUtf8(pick(values, indices)),
            Self::Image(values) => Self::Image(pick(values, indices)),
            Self::Binary(values) => Self::Binary(pick(values, indices)),
        }
    }

    /// Takes the rows from `at` on away.
    fn split_off(&mut self, at: usize) -> Self {
        macro_rules! split {
            ($($variant:ident),*) => {
                match self {
                    $(Self::$variant(values) => Self::$variant(values.split_off(at)),)*
                }
            };
        }
        split!(Utf8, Bool, Int32, Int64, Float64, ListInt64, ListInt32, ListFloat32, ListUtf8, Image, Binary)
    }

    /// The values of `next` after these; nothing if it holds another type.
    fn append(self, next: Self) -> Option<Self> {
        macro_rules! join {
            ($($variant:ident),*) => {
                match (self, next) {
                    $((Self::$variant(mut values), Self::$variant(next)) => {
                        values.extend(next);
                        Some(Self::$variant(values))
                    })*
                    _ => None,
                }
            };
        }
        join!(Utf8, Bool, Int32, Int64, Float64, ListInt64, ListInt32, ListFloat32, ListUtf8, Image, Binary)
    }
}

/// Named columns of equal length.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Table {
    pub(super) columns: Vec<(String, Column)>,
    /// Key-value metadata of the file (`task`, `label_names`, ...).
    pub metadata: BTreeMap<String, String>,
}

impl Table {
    /// A table without columns.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a column.
    ///
    /// # Panics
    /// If its length differs from the others' or the name is taken: a mistake of the stage.
    #[must_use]
    pub fn with(mut self, name: &str, column: Column) -> Self {
        assert!(self.columns.is_empty() || column.len() == self.rows(), "column `{name}` has another length");
        assert!(self.column(name).is_none(), "column `{name}` stands twice");
        self.columns.push((name.to_owned(), column));
        self
    }

    /// Puts another column in the place of the one of that name.
    ///
    /// # Panics
    /// If there is none, or its length differs: a mistake of the stage.
    #[must_use]
    pub fn replacing(mut self, name: &str, column: Column) -> Self {
        assert_eq!(column.len(), self.rows(), "column `{name}` has another length");
        let place = self.columns.iter_mut().find(|(known, _)| known == name);
        place.expect("the column is there").1 = column;
        self
    }

    /// Leaves out the column of that name, if there is one.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.columns.retain(|(known, _)| known != name);
        self
    }

    /// Adds a metadata entry.
    #[must_use]
    pub fn with_metadata(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Adds metadata entries.
    #[must_use]
    pub fn with_all_metadata(self, entries: &[(&str, String)]) -> Self {
        entries.iter().fold(self, |table, (key, value)| table.with_metadata(key, value.clone()))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, column)| column.len())
    }

    /// The columns in order.
    pub fn columns(&self) -> &[(String, Column)] {
        &self.columns
    }

    /// Takes the column of that name out.
    pub(super) fn take(&mut self, name: &str) -> Option<Column> {
        let place = self.columns.iter().position(|(known, _)| known == name)?;
        Some(self.columns.remove(place).1)
    }

    /// The columns in order, as they are.
    pub(super) fn into_columns(self) -> Vec<(String, Column)> {
        self.columns
    }

    /// A column by name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|(known, _)| known == name).map(|(_, column)| column)
    }

    /// The rows at `indices`, in that order.
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Self {
        let columns =
            self.columns.iter().map(|(name, column)| (name.clone(), column.select(indices))).collect();
        Self { columns, metadata: self.metadata.clone() }
    }

    /// Takes the rows from `at` on away; nothing is copied.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let columns = self.columns.iter_mut().map(|(name, column)| (name.clone(), column.split_off(at)));
        Self { columns: columns.collect(), metadata: self.metadata.clone() }
    }

    /// The rows of `next` after those of this table; a table without rows adds nothing.
    ///
    /// # Errors
    /// If a column is missing or has another type there.
    pub fn append(self, next: Self) -> Result<Self, StageError> {
        if next.rows() == 0 {
            return Ok(self);
        }
        if self.rows() == 0 {
            return Ok(Self { metadata: self.metadata, ..next });
        }
        let mut columns = Vec::with_capacity(self.columns.len());
        let mut rest: BTreeMap<String, Column> = next.columns.into_iter().collect();
        for (name, column) in self.columns {
            let second = rest
                .remove(&name)
                .ok_or_else(|| StageError::input("table", format!("a part has no column `{name}`")))?;
            let joined = column.append(second).ok_or_else(|| {
                StageError::input("table", format!("column `{name}` changes its type between parts"))
            })?;
            columns.push((name, joined));
        }
        Ok(Self { columns, metadata: self.metadata })
    }

    fn typed(&self, name: &str, wanted: &str) -> StageError {
        let reason = match self.column(name) {
            None => {
                let known: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
                format!("it has no column `{name}`; its columns are {}", known.join(", "))
            }
            Some(_) => format!("column `{name}` does not hold {wanted}"),
        };
        StageError::input("table", reason)
    }

    /// A text column.
    ///
    /// # Errors
    /// If it is missing or holds something else; likewise below.
    pub fn utf8(&self, name: &str) -> Result<&[Option<String>], StageError> {
        match self.column(name) {
            Some(Column::Utf8(values)) => Ok(values),
            _ => Err(self.typed(name, "text")),
        }
    }

    /// A text column whose nulls read as empty texts.
    ///
    /// # Errors
    /// As [`Self::utf8`].
    pub fn strings(&self, name: &str) -> Result<Vec<&str>, StageError> {
        Ok(self.utf8(name)?.iter().map(|value| value.as_deref().unwrap_or_default()).collect())
    }

    /// A column of single values as text: what names groups of rows.
    ///
    /// # Errors
    /// If it is missing or holds lists, numbers that are not whole, or bytes.
    pub fn as_text(&self, name: &str) -> Result<Vec<Option<String>>, StageError> {
        fn texts<T: ToString>(values: &[Option<T>]) -> Vec<Option<String>> {
            values.iter().map(|value| value.as_ref().map(T::to_string)).collect()
        }
        match self.column(name) {
            Some(Column::Utf8(values)) => Ok(values.clone()),
            Some(Column::Bool(values)) => Ok(texts(values)),
            Some(Column::Int32(values)) => Ok(texts(values)),
            Some(Column::Int64(values)) => Ok(texts(values)),
            _ => Err(self.typed(name, "text, truth values or whole numbers")),
        }
    }

    /// A column of truth values.
    ///
    /// # Errors
    /// As [`Self::utf8`].
    pub fn bools(&self, name: &str) -> Result<&[Option<bool>], StageError> {
        match self.column(name) {
            Some(Column::Bool(values)) => Ok(values),
            _ => Err(self.typed(name, "truth values")),
        }
    }

    /// A column of integers.
    ///
    /// # Errors
    /// As [`Self::utf8`].
    pub fn int64(&self, name: &str) -> Result<&[Option<i64>], StageError> {
        match self.column(name) {
            Some(Column::Int64(values)) => Ok(values),
            _ => Err(self.typed(name, "integers")),
        }
    }

    /// A column of numbers.
    ///
    /// # Errors
    /// As [`Self::utf8`].
    pub fn float64(&self, name: &str) -> Result<&[Option<f64>], StageError> {
        match self.column(name) {
            Some(Column::Float64(values)) => Ok(values),
            _ => Err(self.typed(name, "numbers")),
        }
    }

    /// A column of lists of integers.
    ///
    /// # Errors
    /// As [`Self::utf8`].
    pub fn list_int64(&self, name: &str) -> Result<&[Option<Vec<i64>>], StageError> {
        match self.column(name) {
            Some(Column::ListInt64(values)) => Ok(values),
            _ => Err(self.typed(name, "lists of integers")),
        }
    }

    /// A column of lists of small integers.
    ///
    /// # Errors
    /// As [`Self::utf8`].
    pub fn list_int32(&self, name: &str) -> Result<&[Option<Vec<i32>>], StageError> {
        match self.column(name) {
            Some(Column::ListInt32(values)) => Ok(values),
            _ => Err(self.typed(name, "lists of small integers")),
        }
    }

    /// A column of lists of f32.
    ///
    /// # Errors
    /// As [`Self::utf8`].
    pub fn list_float32(&self, name: &str) -> Result<&[Option<Vec<f32>>], StageError> {
        match self.column(name) {
            Some(Column::ListFloat32(values)) => Ok(values),
            _ => Err(self.typed(name, "lists of numbers")),
        }
    }

    /// A column of encoded images.
    ///
    /// # Errors
    /// As [`Self::utf8`].
    pub fn images(&self, name: &str) -> Result<&[Option<(Vec<u8>, String)>], StageError> {
        match self.column(name) {
            Some(Column::Image(values)) => Ok(values),
            _ => Err(self.typed(name, "images")),
        }
    }

    /// The indices of the rows whose `split` is one of `splits`; all rows if `splits` is empty or there
    /// is no such column.
    pub fn rows_of_splits(&self, splits: &[&str]) -> Vec<usize> {
        match self.column("split") {
            Some(Column::Utf8(values)) if !splits.is_empty() => (0..values.len())
                .filter(|row| values[*row].as_deref().is_some_and(|split| splits.contains(&split)))
                .collect(),
            _ => (0..self.rows()).collect(),
        }
    }
}
