"""A model of a fleet: many hosts that record, engines between them and the workers that fold and POST. Nothing of the
package is imported and nothing is started: numbers in, numbers out, the same for the same seed."""
