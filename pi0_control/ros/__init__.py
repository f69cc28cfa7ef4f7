"""The ROS 2 door: messages to observations, commands to messages, the managed node that drives the robot."""
