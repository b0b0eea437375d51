// Package yamlfile reads YAML files that people write, so that every error
// names the file, line and column of the field that is wrong. It takes plain
// YAML only: mappings, lists and single values, without anchors, aliases and
// tags.
package yamlfile
