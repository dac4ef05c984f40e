// Package fault ends or pauses this process at a named point, so that a test can
// show that nothing is lost between any two steps.
//
// The points are only in an executable that is built with the tag faultpoints,
// as tests build one: it reads [Variable] when it starts. Without the tag [Hit]
// does nothing and is compiled to nothing.
package fault

// Variable is the environment variable that arms a point: "kill POINT" ends the
// process there with SIGKILL, "pause POINT" stops it there with SIGSTOP, the
// first time that it comes by. Anything else ends the process with exit code 2.
const Variable = "ORCH_FAULT"

// Tag is the build tag of an executable that has the points.
const Tag = "faultpoints"
