"""The tables of an atlas. A row of `word` has its label's id: a column of it, or its rowid, which alone is looked up
without reading the others."""

from __future__ import annotations

SCHEMA = 1

TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE document (
    number INTEGER PRIMARY KEY, start INTEGER NOT NULL, length INTEGER NOT NULL, id TEXT NOT NULL,
    source TEXT, language TEXT, roles BLOB NOT NULL
);
CREATE TABLE feature (
    feature INTEGER PRIMARY KEY, fires INTEGER NOT NULL, density REAL NOT NULL, mean REAL NOT NULL,
    max REAL NOT NULL, scale REAL NOT NULL, documents INTEGER NOT NULL, role TEXT, language TEXT,
    flags TEXT NOT NULL, more BLOB NOT NULL
);
CREATE INDEX feature_figures ON feature (density, max, mean, documents, role, language, flags);
CREATE TABLE example (feature INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE label (
    id INTEGER PRIMARY KEY, feature INTEGER NOT NULL, text TEXT NOT NULL, method TEXT NOT NULL, model TEXT NOT NULL,
    prompt TEXT NOT NULL, type TEXT NOT NULL, rule BLOB, confidence REAL, created TEXT NOT NULL,
    UNIQUE (feature, method, model, prompt)
);
CREATE INDEX label_feature ON label (feature);
CREATE TABLE score (
    label INTEGER NOT NULL REFERENCES label (id) ON DELETE CASCADE, name TEXT NOT NULL, value REAL NOT NULL,
    low REAL, high REAL, number INTEGER, PRIMARY KEY (label, name)
) WITHOUT ROWID;
CREATE TABLE asked (
    id INTEGER PRIMARY KEY, feature INTEGER, purpose TEXT NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL,
    answer TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, dollars REAL NOT NULL,
    created TEXT NOT NULL, UNIQUE (purpose, model, prompt)
);
CREATE VIRTUAL TABLE word USING fts5 (text, feature UNINDEXED, label UNINDEXED, tokenize = 'porter unicode61');
CREATE TRIGGER label_added AFTER INSERT ON label BEGIN
    INSERT INTO word (rowid, text, feature, label) VALUES (new.id, new.text, new.feature, new.id);
END;
CREATE TRIGGER label_removed AFTER DELETE ON label BEGIN
    DELETE FROM word WHERE rowid = old.id;
END;
CREATE TRIGGER label_changed AFTER UPDATE OF text ON label BEGIN
    UPDATE word SET text = new.text WHERE rowid = new.id;
END;
"""
